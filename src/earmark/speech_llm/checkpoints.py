"""Checkpoints of a training that may be killed: which of them are whole, and whether one says what it said before.

    output_dir/checkpoints/{key}/checkpoint-{step}/

`key` stands for all that shapes the training: other settings, data or versions find a folder of another name, and start
from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import earmark
from earmark.errors import EarmarkError
from earmark.mid_epoch import state_files
from earmark.speech_llm.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from earmark.speech_llm.model import WEIGHTS
from earmark.speech_llm.settings import Settings

log = logging.getLogger(__name__)

CHECK = "checked_step.json"  # the loss on fixed samples with these weights, and what callbacks remember
STATE = "trainer_state.json"
_WEIGHTS = ((WEIGHTS,), (ADAPTER_WEIGHTS, ADAPTER_CONFIG))  # one of these
_FILES = (CHECK, "optimizer.pt", "scheduler.pt", STATE)
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy")


class CheckpointChanged(EarmarkError):
    """A checkpoint does not give the loss that it gave when it was written."""


def training_key(settings: Settings, files: Iterable[Path], processes: int) -> str:
    """A digest of the settings that shape the weights, of data files (name, size, time) and of versions."""
    shaping = (
        settings.model,
        settings.data,
        replace(
            settings.train, output_dir="", save_steps=0, checkpoint_minutes=0, save_total_limit=2, resume=True,
            resume_tolerance=0, logging_steps=1, dataloader_num_workers=0,
        ),
        replace(settings.stability, debug_loss=False, on_nan="stop", max_nan_skips=0),
    )  # fmt: skip
    stats = [(path.name, path.stat()) for path in files if path.exists()]  # what is missing is the reader's to tell
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    versions = [earmark.__version__, *map(version, _LIBRARIES)]
    return hashlib.sha256(repr((shaping, stamps, versions, processes)).encode()).hexdigest()[:16]


def last_checkpoint(folder: Path, processes: int) -> Path | None:
    """The newest whole checkpoint in `folder`; half-written ones are passed over."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if _is_whole(checkpoint, processes):
            return checkpoint
        log.info("%s: killed while it was written or removed; passed over", checkpoint)
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path, processes: int) -> bool:
    if not any(all((checkpoint / name).is_file() for name in (*weights, *_FILES)) for weights in _WEIGHTS):
        return False
    of_processes = [*state_files("rng_state", processes), *state_files("losses", processes)]
    if not all((checkpoint / name).is_file() for name in of_processes):
        return False
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))  # written last; one that breaks off is no JSON
    except ValueError:
        return False
    return True


def is_finished(checkpoint: Path) -> bool:
    """Whether a whole checkpoint is the last of its training."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def check_loss(checkpoint: Path, recorded: float, loss: float, tolerance: float) -> None:
    """CheckpointChanged if `loss` is not finite, or further from `recorded` than `tolerance`, relative."""
    if not math.isfinite(loss) or abs(loss - recorded) > tolerance * max(abs(recorded), 1e-6):
        raise CheckpointChanged(
            f"{checkpoint}: its loss was {recorded:.6g} when it was written and is {loss:.6g} now; the base models, "
            "the audio or the machine have changed. Remove the checkpoint to start again, or raise resume_tolerance"
        )
    log.info("%s: checked step: loss %.6g, recorded %.6g; the training goes on", checkpoint, loss, recorded)
