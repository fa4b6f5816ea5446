from pathlib import Path

from earmark.evaluation.ranked import Settings
from earmark.evaluation.retrieval import Fold, evaluate_retriever
from earmark.logs import job_log

with job_log(snakemake.log[0]):
    inputs = snakemake.input
    folds = zip(inputs.fold_models, inputs.fold_indexes, inputs.held_out, strict=True)
    evaluate_retriever(
        Path(inputs.model),
        [Path(path) for path in inputs.features],
        Path(inputs.test).parent,
        Path(inputs.glossary),
        Path(inputs.alt2main),
        Path(inputs.index),
        Path(snakemake.output.metrics),
        Path(snakemake.output.predictions),
        settings=Settings.of(snakemake.params.figures, snakemake.params.seed),
        candidates=snakemake.params.candidates,
        threads=snakemake.threads,
        folds=[Fold(Path(model), Path(index), Path(held_out)) for model, index, held_out in folds],
        held_out_chunks=snakemake.params.held_out_chunks,
    )
