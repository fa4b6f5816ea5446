from pathlib import Path

from earmark.logs import job_log
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.train import HeadSize, Objective, Schedule, TowerSize, train_retriever

with job_log(snakemake.log[0]):
    params = snakemake.params
    train_retriever(
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.train).parent,
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output[0]),
        encoder=params.encoder,
        layer=params.layer,
        embedding_dim=params.embedding_dim,
        head=HeadSize(**params.audio_head),
        tower=TowerSize(**params.text_tower),
        objective=Objective(**params.objective),
        schedule=Schedule(**params.schedule),
        augmentation=FrameAugmentation(**params.augmentation),
        seed=params.seed,
        threads=snakemake.threads,
    )
