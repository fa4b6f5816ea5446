from pathlib import Path

from earmark.logs import job_log
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.train import HeadSize, Objective, Schedule, TowerSize, train_retriever

with job_log(snakemake.log[0]):
    retrieval, train = snakemake.params.retrieval, snakemake.params.train
    train_retriever(
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.train).parent,
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output[0]),
        encoder=snakemake.params.encoder,
        layer=retrieval["layer"],
        embedding_dim=retrieval["embedding_dim"],
        head=HeadSize(**retrieval["audio_head"]),
        tower=TowerSize(**retrieval["text_tower"]),
        objective=Objective(**train["objective"]),
        schedule=Schedule(**train["schedule"]),
        augmentation=FrameAugmentation(**train["augmentation"]),
        seed=snakemake.params.seed,
        threads=snakemake.threads,
    )
