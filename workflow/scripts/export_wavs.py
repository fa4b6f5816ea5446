from pathlib import Path

from earmark.export.wavs import export_wavs
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    export_wavs(
        Path(snakemake.input.chunks),
        [Path(path) for path in snakemake.input.splits],
        Path(snakemake.output[0]),
        **snakemake.params.wavs,
    )
