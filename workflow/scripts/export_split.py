from pathlib import Path

from earmark.export.splits import export_split
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    export_split(
        Path(snakemake.input.split),
        Path(snakemake.input.glossary),
        {shard: Path(snakemake.params.wav_root) / shard for shard in snakemake.params.shards},
        Path(snakemake.output.lines),
        format=snakemake.wildcards.format,
        task=snakemake.params.task,
        prompt=snakemake.params.prompt,
        tokenizer=snakemake.params.tokenizer,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
