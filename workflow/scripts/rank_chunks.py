from pathlib import Path

from earmark.evaluation.retrieval import rank_chunks
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    rank_chunks(
        Path(snakemake.input.model),
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.chunks),
        Path(snakemake.input.index),
        Path(snakemake.output[0]),
        top_k=snakemake.params.top_k,
        candidates=snakemake.params.candidates,
        threads=snakemake.threads,
    )
