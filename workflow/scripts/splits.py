from pathlib import Path

from earmark.chunks.splits import split_chunks
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    split_chunks(
        {Path(path).stem: Path(path) for path in snakemake.input.chunks},
        Path(snakemake.input.glossary),
        Path(snakemake.output.train).parent,
        **snakemake.params.splits,
        seed=snakemake.params.seed,
    )
