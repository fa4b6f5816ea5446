"""What a job used of the GPUs that it was given, as nvidia-smi tells, looked at now and then while the job runs."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_FIRST_S, _EVERY_S = 5.0, 30.0  # a job that loads models uses no GPU in its first seconds
_TIMEOUT_S = 20.0
_QUERY = "utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True)
class GpuUse:
    """Of the GPUs of one node together, over all looks at them.

    `busy`: the mean share of time in which something ran on a GPU, 0 to 1. `peak_mb`: the most memory that was in use
    on one GPU, by anybody; `total_mb`: what that GPU has.
    """

    gpus: int
    busy: float
    peak_mb: float
    total_mb: float


class GpuSampler:
    """Looks at `gpus` (indices or UUIDs) every half minute, in a thread that ends with the process.

    What goes wrong there is nobody's business: then there are no figures.
    """

    def __init__(self, gpus: str):
        self._gpus = gpus
        self._samples: list[tuple[float, float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu use", daemon=True)
        self._thread.start()

    def stop(self) -> GpuUse | None:
        """Look no more. What was seen; None where the job was too short for a look, or nvidia-smi tells nothing."""
        self._stopped.set()
        samples = list(self._samples)  # not waited for: an nvidia-smi that hangs must not hold the job
        if not samples:
            return None
        peak_mb, total_mb = max((used, total) for _, used, total in samples)
        busy = statistics.mean(percent for percent, _, _ in samples) / 100
        return GpuUse(self._gpus.count(",") + 1, busy, peak_mb, total_mb)

    def _watch(self) -> None:
        pause_s = _FIRST_S
        while not self._stopped.wait(pause_s):
            try:
                self._samples += _look(self._gpus)
            except (OSError, ValueError, subprocess.SubprocessError):
                return
            pause_s = _EVERY_S


def gpu_sampler() -> GpuSampler | None:
    """A sampler of the GPUs that this job was given (CUDA_VISIBLE_DEVICES); None where it was given none."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "")
    if not re.fullmatch(r"[\w.-]+(,[\w.-]+)*", gpus) or gpus == "-1" or shutil.which("nvidia-smi") is None:
        return None
    try:
        return GpuSampler(gpus)
    except RuntimeError:  # the system gives no more threads
        return None


def _look(gpus: str) -> Iterator[tuple[float, float, float]]:
    """Per GPU: percent of the time busy, MB used, MB there are. Nothing of one that does not tell ([N/A] under MIG)."""
    told = subprocess.run(
        ["nvidia-smi", f"--id={gpus}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
    )  # fmt: skip
    for line in told.stdout.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and all(re.fullmatch(r"\d+(\.\d+)?", cell) for cell in cells):
            percent, used_mb, total_mb = map(float, cells)
            yield percent, used_mb, total_mb
