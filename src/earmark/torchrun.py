"""Several processes of one training, all on this machine, by torchrun: started by `torchrun`, each within `process`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from earmark.errors import ConfigError, EarmarkError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_ERRORS = "EARMARK_ERRORS"  # the folder in which a process that fails says why


def torchrun(module: str, arguments: Sequence[str], *, processes: int, threads: int) -> None:
    """`python -m module arguments` in so many processes, which share `threads` cores and have a GPU each.

    ConfigError if there are GPUs, but fewer. What the processes log goes where this one's does; an EarmarkError is
    raised here as it was there. They end with this process, also where that is killed.
    """
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(
            f"train.processes is {processes}, but this job was given {torch.cuda.device_count()} GPU; give it as many "
            "GPUs as processes (on Slurm it asks for them), or set train.processes to their number"
        )
    with tempfile.TemporaryDirectory(prefix="earmark-training-") as errors:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        running = subprocess.Popen(
            [*command, "-m", module, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": str(max(1, threads // processes)), _ERRORS: errors},
            preexec_fn=_end_with_parent,
        )
        try:
            status = running.wait()
        except BaseException:
            running.send_signal(signal.SIGTERM)  # it ends its processes
            running.wait()
            raise
        if status:
            told = sorted(Path(errors).iterdir())
            raise EarmarkError(
                told[0].read_text(encoding="utf-8")
                if told
                else f"one of {processes} training processes ended without a word of its own (status {status}); its "
                "last lines are above. A process that is killed often had too little memory"
            )


@contextmanager
def process() -> Iterator[None]:
    """Within one of the processes: the first logs what it does, the others warnings; an EarmarkError ends them all."""
    rank = os.environ["RANK"]
    level = logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        yield
    except EarmarkError as error:
        Path(os.environ[_ERRORS], rank).write_text(str(error), encoding="utf-8")
        sys.exit(1)


def _end_with_parent() -> None:
    """Have Linux tell this process to end when its parent is gone: a job that is killed leaves no training behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
