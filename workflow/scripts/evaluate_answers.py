from pathlib import Path

from earmark.evaluation.answers import evaluate_answers
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    inputs, output = snakemake.input, snakemake.output
    evaluate_answers(
        {split: Path(inputs[split]) for split in ("dev", "test")},
        Path(inputs.splits[0]).parent,
        Path(inputs.glossary),
        Path(inputs.alt2main),
        Path(inputs.retriever_metrics),
        Path(inputs.retriever_predictions),
        Path(output.metrics),
        Path(output.predictions),
        task=snakemake.params.task,
        hints=[Path(path) for path in inputs.hints],
    )
