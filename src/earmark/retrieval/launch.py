"""Starting a training: in this process, or in several that torchrun starts.

    python -m torch.distributed.run --standalone --nproc-per-node N -m earmark.retrieval.launch JOB

is what `train_in_processes` runs; JOB holds the arguments of `train_retriever`. All N are on this machine.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from earmark.errors import ConfigError, EarmarkError
from earmark.retrieval.train import train_retriever

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def train_in_processes(processes: int, *, threads: int, **arguments: Any) -> None:
    """`train_retriever` with `arguments`, in so many processes, which share `threads` cores and have a GPU each.

    ConfigError if there are GPUs, but fewer. What the processes log goes where this one's does; an EarmarkError is
    raised here as it was there.
    """
    if processes == 1:
        train_retriever(threads=threads, **arguments)
        return
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(
            f"train.processes is {processes}, but this job was given {torch.cuda.device_count()} GPU; ask for as many "
            "GPUs as processes (on Slurm: cluster.gpu_gres), or set train.processes to their number"
        )
    with tempfile.TemporaryDirectory(prefix="earmark-training-") as folder:
        job = Path(folder, "job.pickle")
        threads = max(1, threads // processes)
        job.write_bytes(pickle.dumps({"threads": threads, **arguments}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        torchrun = subprocess.Popen(
            [*command, "-m", __name__, str(job)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            preexec_fn=_end_with_parent,
        )
        try:
            status = torchrun.wait()
        except BaseException:
            torchrun.send_signal(signal.SIGTERM)  # it ends its processes
            torchrun.wait()
            raise
        if status:
            told = sorted(Path(folder).glob("*.error"))
            raise EarmarkError(
                told[0].read_text(encoding="utf-8")
                if told
                else f"one of {processes} training processes ended without a word of its own (status {status}); its "
                "last lines are above. A process that is killed often had too little memory"
            )


def _end_with_parent() -> None:
    """Have Linux tell this process to end when its parent is gone: a job that is killed leaves no training behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(job: Path) -> None:
    """One of the processes."""
    rank = os.environ["RANK"]
    level = logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    # What the libraries will one day rename is no news to who trains.
    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|sentence_transformers")
    try:
        train_retriever(**pickle.loads(job.read_bytes()))  # noqa: S301 (written by `train_in_processes`)
    except EarmarkError as error:
        job.with_name(f"{rank}.error").write_text(str(error), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
