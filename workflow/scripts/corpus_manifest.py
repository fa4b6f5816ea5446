from pathlib import Path

from earmark.corpus.sharding import split_manifest
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    split_manifest(
        Path(params.manifest),
        {Path(path).stem: Path(path) for path in snakemake.output.shards},
        Path(snakemake.output.counts),
        format=params.format,
        audio_root=Path(params.audio_root) if params.audio_root else None,
        columns=params.columns,
        subset=params.subset,
        language=params.language,
        max_rejected_fraction=params.max_rejected_fraction,
    )
