from pathlib import Path

from earmark.chunks.cut import cut_chunks
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    cut_chunks(
        Path(snakemake.input.corpus),
        Path(snakemake.input.alignments),
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.input.ambiguous),
        Path(snakemake.input.dropped),
        Path(snakemake.output[0]),
        **snakemake.params.cut,
        seed=snakemake.params.seed,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
