from pathlib import Path

from earmark.chunks.folds import fold_splits
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    fold_splits(
        Path(snakemake.input.train),
        Path(snakemake.input.dev),
        Path(snakemake.output.held_out[0]).parents[1],
        folds=snakemake.params.folds,
    )
