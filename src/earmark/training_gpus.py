"""Which GPUs of one machine trainings take, by their ids: `train.gpu_ids`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from earmark.errors import ConfigError

log = logging.getLogger(__name__)

_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def check_gpu_ids(train: Mapping[str, Any], *, on_slurm: bool) -> None:
    """ConfigError if the section `train` names GPUs, and not one a process, or where they are not for it to name.

    `on_slurm`: whether this is a job of Slurm's, or is about to hand it jobs.
    """
    gpu_ids = train["gpu_ids"]
    if gpu_ids is None:
        return
    if on_slurm:
        raise ConfigError(
            f"train.gpu_ids is {gpu_ids}, but Slurm deals GPUs out to its jobs; set train.gpu_ids to null (the section "
            "cluster says which kind of GPU jobs ask for)"
        )
    if train["nodes"] > 1:
        raise ConfigError(
            f"train.gpu_ids is {gpu_ids}, which names GPUs of one machine, but train.nodes is {train['nodes']}; set "
            "one of them to its default"
        )
    if len(gpu_ids) != train["processes"]:
        raise ConfigError(
            f"train.gpu_ids names {len(gpu_ids)} GPUs ({gpu_ids}), but train.processes is {train['processes']}; each "
            f"process trains on one GPU: set train.processes to {len(gpu_ids)}, or name as many GPUs"
        )


@contextmanager
def training_gpus(train: Mapping[str, Any]) -> Iterator[None]:
    """Within, this process and those that it starts see the GPUs that the section `train` names, and no others.

    By their ids in nvidia-smi, in the order given; all that there are where none is named. It must be entered before
    CUDA is used. ConfigError as `check_gpu_ids`.
    """
    check_gpu_ids(train, on_slurm="SLURM_JOB_ID" in os.environ)
    if train["gpu_ids"] is None:
        yield
        return
    named = ",".join(map(str, train["gpu_ids"]))
    before = {name: os.environ.get(name) for name in (_VISIBLE, _ORDER)}
    if before[_VISIBLE] not in (None, named):
        log.warning("%s is %s; train.gpu_ids has its way: %s", _VISIBLE, before[_VISIBLE], named)
    # In CUDA's own order the fastest GPU is the first, in nvidia-smi's that of the lowest slot.
    os.environ.update({_VISIBLE: named, _ORDER: "PCI_BUS_ID"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_visible(gpu_ids: Sequence[int] | None, count: int) -> None:
    """ConfigError if of the named GPUs PyTorch finds but `count` within `training_gpus`."""
    if gpu_ids is not None and count != len(gpu_ids):
        raise ConfigError(
            f"train.gpu_ids is {gpu_ids}, but of these PyTorch finds {count} on this machine; nvidia-smi lists the ids "
            "that there are"
        )
