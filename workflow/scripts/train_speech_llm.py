from pathlib import Path

import torch

from earmark.logs import job_log
from earmark.speech_llm.launch import train_speech_llm
from earmark.speech_llm.section import settings_of
from earmark.training_gpus import check_visible, training_gpus

run = snakemake.config["train"]
with job_log(snakemake.log[0]), training_gpus(run):
    check_visible(run["gpu_ids"], torch.cuda.device_count())
    params, inputs = snakemake.params, snakemake.input
    settings = settings_of(
        params.flags,
        snakemake.wildcards.speech_llm,
        train_json=Path(inputs.train),
        valid_json=Path(inputs.dev),
        output_dir=Path(snakemake.output[0]),
        seed=params.seed,
        max_rejected_fraction=params.max_rejected_fraction,
        checkpoint_minutes=run["checkpoint_minutes"],
    )
    train_speech_llm(
        settings,
        wavs=[Path(path) for path in inputs.wavs],
        processes=params.processes,
        nodes=run["nodes"],
        threads=snakemake.threads,
    )
