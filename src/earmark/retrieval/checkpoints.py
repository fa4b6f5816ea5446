"""Checkpoints of a training that may be killed, in a hidden folder beside what it makes.

    models/.retriever.checkpoint/{key}/checkpoint-{step}/    for models/retriever

The folder outlives the process and is no output of a job, so nobody clears it away between two attempts. `key` stands
for all that shapes the training: another configuration finds a folder of another name, and starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import earmark
from earmark.mid_epoch import state_files

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
BEST_EPOCH = "best_epoch.safetensors"
BATCHES = "batches.json"  # the state of what batches are drawn with, within an epoch
STATE = "trainer_state.json"
# All that is needed to go on, beside the processes' random states and losses. The trainer writes the state last, and a
# JSON object that breaks off is none.
_FILES = (WEIGHTS, BEST_EPOCH, BATCHES, "optimizer.pt", "scheduler.pt", STATE)
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")


def training_key(settings: Iterable[object], files: Iterable[Path]) -> str:
    """A digest of a training's settings (as `repr` shows them), of its files (name, size, time) and of the code."""
    stats = [(path.name, path.stat()) for path in files if path.exists()]  # what is missing is the reader's to tell
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    versions = [earmark.__version__, *map(version, _LIBRARIES)]
    return hashlib.sha256(repr((tuple(settings), stamps, versions)).encode()).hexdigest()[:16]


def checkpoint_folder(output: Path, key: str) -> Path:
    """Where the checkpoints of the training `key` that makes `output` lie."""
    return output.parent / f".{output.name}.checkpoint" / key


@contextmanager
def checkpoints_beside(output: Path, key: str) -> Iterator[Path]:
    """Yield the folder for the checkpoints of the training `key` that makes `output`.

    The folder is removed when the block ends well, and stays where the process is killed or fails, if it holds any.
    Checkpoints of another key are removed first.
    """
    folder = checkpoint_folder(output, key)
    home = folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    for other in home.iterdir():
        if other != folder:
            log.info("%s: checkpoints of another configuration, other inputs or another version; removed", other)
            shutil.rmtree(other)
    try:
        yield folder
    except BaseException:
        if not any(folder.glob("checkpoint-*")):
            shutil.rmtree(home)
        raise
    shutil.rmtree(home)


def last_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """The newest whole checkpoint of a training in so many processes.

    All others are removed, of which the half-written are logged.
    """
    last = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if last is None and _is_whole(checkpoint, processes):
            last = checkpoint
            continue
        if last is None:
            log.info("%s: killed while it was written or removed; passed over", checkpoint)
        shutil.rmtree(checkpoint)
    return last


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path, processes: int) -> bool:
    of_processes = [*state_files("rng_state", processes), *state_files("losses", processes)]
    if not all((checkpoint / name).is_file() for name in (*_FILES, *of_processes)):
        return False
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that train, by name: views, not copies. A model has the same names inside and outside of
    DistributedDataParallel, which a loss may have been given in its place."""
    return {
        name.replace("model.module.", "model.", 1): parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def save_weights(module: nn.Module, path: Path) -> None:
    """Write what trains in `module`."""
    save_file(trained_weights(module), path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Put what `save_weights` wrote back in place. KeyError if the file does not hold all that trains."""
    saved = load_file(path)
    for name, weight in trained_weights(module).items():
        weight.copy_(saved[name])
