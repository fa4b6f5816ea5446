from pathlib import Path

from earmark.funasr_nano.train import train_funasr_nano
from earmark.logs import job_log
from earmark.packed_wavs import check_unpacked
from earmark.training_gpus import training_gpus

run = snakemake.config["train"]
with job_log(snakemake.log[0]), training_gpus(run):
    params, inputs = snakemake.params, snakemake.input
    check_unpacked([Path(path) for path in inputs.wavs], Path(inputs.train))
    train_funasr_nano(
        {**params.section, "conf": inputs.conf, "python": snakemake.config["funasr_nano"]["python"]},
        train_lines=Path(inputs.train),
        dev_lines=Path(inputs.dev),
        output=Path(snakemake.output[0]),
        processes=params.processes,
        gpu_ids=run["gpu_ids"],
        threads=snakemake.threads,
        seed=params.seed,
        max_rejected_fraction=params.max_rejected_fraction,
    )
