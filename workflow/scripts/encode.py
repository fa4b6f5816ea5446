from pathlib import Path

from earmark.logs import job_log
from earmark.retrieval.features import encode_chunks

with job_log(snakemake.log[0]):
    encode_chunks(
        Path(snakemake.input.chunks),
        Path(snakemake.output[0]),
        splits=[Path(path) for path in snakemake.input.splits],
        encoder=snakemake.params.encoder,
        layer=snakemake.params.layer,
        seed=snakemake.params.seed,
        batch_size=snakemake.params.batch_size,
        threads=snakemake.threads,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
