from pathlib import Path

from earmark.corpus.sharding import split_manifest
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    corpus = snakemake.params.corpus
    split_manifest(
        Path(snakemake.input.manifest),
        {Path(path).stem: Path(path) for path in snakemake.output.shards},
        Path(snakemake.output.counts),
        format=corpus["format"],
        audio_root=Path(corpus["audio_root"]) if corpus["audio_root"] else None,
        language=corpus["language"],
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
    )
