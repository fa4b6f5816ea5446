from pathlib import Path

from earmark.evaluation.ranked import Settings
from earmark.evaluation.retrieval import evaluate_retriever
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    evaluate_retriever(
        Path(snakemake.input.model),
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.test).parent,
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.input.index),
        Path(snakemake.output.metrics),
        Path(snakemake.output.predictions),
        settings=Settings.of(snakemake.params.figures, snakemake.params.seed),
        candidates=snakemake.params.candidates,
        threads=snakemake.threads,
    )
