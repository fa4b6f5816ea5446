from pathlib import Path

from earmark.chunks.funnel import write_funnel
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    write_funnel(
        Path(snakemake.input.manifest),
        [Path(path) for path in snakemake.input.get("corpus", [])],
        [Path(path) for path in snakemake.input.get("alignments", [])],
        [Path(path) for path in snakemake.input.chunks],
        {split: Path(snakemake.input[split]) for split in ("train", "dev", "test")},
        Path(snakemake.output[0]),
    )
