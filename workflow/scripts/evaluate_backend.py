from pathlib import Path

from earmark.evaluation.retrieval import evaluate
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    evaluate(
        Path(snakemake.input.model),
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.test).parent,
        Path(snakemake.input.index),
        Path(snakemake.input.terms),
        Path(snakemake.output.metrics),
        Path(snakemake.output.predictions),
        **snakemake.params.evaluate,
        seed=snakemake.params.seed,
        threads=snakemake.threads,
    )
