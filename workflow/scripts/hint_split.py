from pathlib import Path

from earmark.export.hints import read_hints
from earmark.export.splits import export_split
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    export_split(
        Path(snakemake.input.split),
        Path(snakemake.input.glossary),
        {shard: Path(params.wav_root) / shard for shard in params.shards},
        Path(snakemake.output.lines),
        format="conversation",
        task=params.task,
        prompt=params.prompt,
        tokenizer=params.tokenizer,
        max_rejected_fraction=params.max_rejected_fraction,
        hints=read_hints(map(Path, snakemake.input.rankings), params.hints, params.hint_prompt),
    )
