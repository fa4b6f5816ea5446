"""What a program that this process starts has to know of it: when to end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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
