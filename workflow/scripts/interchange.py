from pathlib import Path

from earmark.export.interchange import write_interchange
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    chunks = [Path(path) for path in snakemake.input.chunks]
    write_interchange(
        chunks,
        [Path(snakemake.params.wav_root) / path.stem for path in chunks],
        Path(snakemake.output[0]),
        context_s=snakemake.params.context_s,
    )
