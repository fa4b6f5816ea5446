from pathlib import Path

from earmark.export.interchange import write_interchange
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    write_interchange(
        [Path(path) for path in snakemake.input.chunks],
        [Path(path) for path in snakemake.input.wavs],
        Path(snakemake.output[0]),
        context_s=snakemake.params.context_s,
    )
