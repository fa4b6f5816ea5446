from pathlib import Path

from earmark.logs import job_log
from earmark.pronunciations import read_lexicon
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.recipes import recipe_of
from earmark.retrieval.train import Schedule, train_retriever

with job_log(snakemake.log[0]):
    params = snakemake.params
    lexicon = read_lexicon(Path(snakemake.input.lexicon)) if snakemake.input.lexicon else {}
    train_retriever(
        [Path(path) for path in snakemake.input.features],
        Path(snakemake.input.train).parent,
        Path(snakemake.input.glossary),
        Path(snakemake.input.alt2main),
        Path(snakemake.output[0]),
        encoder=params.encoder,
        layer=params.layer,
        recipe=recipe_of(params.interaction, params.settings, lexicon),
        schedule=Schedule(**params.schedule),
        augmentation=FrameAugmentation(**params.augmentation),
        seed=params.seed,
        threads=snakemake.threads,
    )
