from pathlib import Path

from earmark.logs import job_log
from earmark.retrieval.index import build_index

with job_log(snakemake.log[0]):
    build_index(
        Path(snakemake.input.model),
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output[0]),
        kind=snakemake.params.kind,
        background_count=snakemake.params.background_words,
        language=snakemake.params.language,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
        threads=snakemake.threads,
    )
