from pathlib import Path

from earmark.evaluation.transcripts import transcribe_chunks
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    transcribe_chunks(
        Path(snakemake.input.chunks),
        [Path(snakemake.input.dev), Path(snakemake.input.test)],
        Path(snakemake.output[0]),
        **snakemake.params,
        threads=snakemake.threads,
    )
