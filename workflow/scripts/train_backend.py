from pathlib import Path

import torch

from earmark.logs import job_log
from earmark.pronunciations import read_lexicon
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.hard_negatives import read_hard_negatives
from earmark.retrieval.launch import train_in_processes
from earmark.retrieval.recipes import recipe_of
from earmark.retrieval.train import Schedule
from earmark.training_gpus import check_visible, training_gpus

# How it is run, which shapes no artifact: no parameters of the rule, so that a change makes nothing again.
run = snakemake.config["train"]
with job_log(snakemake.log[0]), training_gpus(run):
    check_visible(run["gpu_ids"], torch.cuda.device_count())
    params, inputs = snakemake.params, snakemake.input
    lexicon = read_lexicon(Path(inputs.lexicon)) if inputs.lexicon else {}
    hard_negatives = read_hard_negatives(Path(inputs.hard_negatives)) if inputs.hard_negatives else None
    train_in_processes(
        run["processes"],
        nodes=run["nodes"],
        features=[Path(path) for path in inputs.features],
        splits=Path(inputs.train).parent,
        glossary=Path(inputs.glossary),
        alt2main=Path(inputs.alt2main),
        output=Path(snakemake.output[0]),
        encoder=params.encoder,
        layer=params.layer,
        recipe=recipe_of(
            params.interaction, params.settings, lexicon, params.language, hard_negatives, params.max_negatives
        ),
        schedule=Schedule(**params.schedule),
        augmentation=FrameAugmentation(**params.augmentation),
        seed=params.seed,
        threads=snakemake.threads,
        log_steps=params.log_steps,
        checkpoint_minutes=run["checkpoint_minutes"],
        tensorboard=Path(snakemake.log[0]).with_suffix(".tensorboard") if run["tensorboard"] else None,
    )
