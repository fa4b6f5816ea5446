"""Programs that this process starts: how many cores they take, when they end, and what they say when they fail."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ERRORS = "EARMARK_ERRORS"  # the folder in which a program that fails says why, in a file named after its rank
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Snakemake sets all of them to the job's threads, and MKL heeds its own before OpenMP's.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_S = 60  # to end by itself; more than the 30 s after which torchrun's agent kills its processes


def variables(threads: int, errors: Path) -> dict[str, str]:
    """What is set in the environment of a program that may take so many cores, and says in `errors` why it failed."""
    return {**dict.fromkeys(_THREADS, str(max(1, threads))), ERRORS: str(errors)}


def said(errors: Path) -> str | None:
    """What the first program that failed said of it; None if none said anything."""
    told = sorted(errors.iterdir())
    return told[0].read_text(encoding="utf-8") if told else None


def end_with_parent() -> None:
    """For `Popen(preexec_fn=…)`: Linux tells the program to end when its parent is gone, killed or not."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def passing_on_sigterm(running: subprocess.Popen) -> Iterator[None]:
    """While the block runs, SIGTERM is for the program, which may have something to save; this process waits for it.

    In a Slurm job it is not passed on: Slurm tells all processes of a job at once, and torchrun's agent, told a second
    time, would not wait for its own. Outside of the main thread SIGTERM ends this process as ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: object) -> None:
        if "SLURM_JOB_ID" not in os.environ:
            running.send_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def end(running: subprocess.Popen) -> None:
    """Tell a program to end, torchrun's agent with its processes and srun with its agents; in the end, kill it."""
    running.terminate()
    try:
        running.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
