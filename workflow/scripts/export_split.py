from pathlib import Path

from earmark.export.splits import export_split
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    export_split(
        Path(snakemake.input.split),
        Path(snakemake.input.glossary),
        dict(zip(snakemake.params.shards, map(Path, snakemake.input.wavs), strict=True)),
        Path(snakemake.output[0]),
        format=snakemake.wildcards.format,
        task=snakemake.params.task,
        prompt=snakemake.params.prompt,
        tokenizer=snakemake.params.tokenizer,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
