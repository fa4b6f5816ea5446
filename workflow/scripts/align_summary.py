from pathlib import Path

from earmark.alignment.accuracy import score_alignments
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    score_alignments(
        [Path(path) for path in snakemake.input.alignments],
        [Path(path) for path in snakemake.input.corpus],
        Path(snakemake.input.reference),
        Path(snakemake.output[0]),
    )
