from pathlib import Path

from earmark.alignment.summary import write_summary
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    write_summary(
        [Path(path) for path in snakemake.input.alignments],
        [Path(path) for path in snakemake.input.corpus],
        Path(snakemake.input.reference) if snakemake.input.reference else None,
        Path(snakemake.output[0]),
    )
