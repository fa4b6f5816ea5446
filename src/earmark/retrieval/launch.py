"""Starting a training: in this process, or in several.

    python -m torch.distributed.run --standalone --nproc-per-node N -m earmark.retrieval.launch JOB

is what `train_in_processes` runs; JOB holds the arguments of `train_retriever`.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from earmark.retrieval.train import train_retriever
from earmark.torchrun import process, torchrun


def train_in_processes(processes: int, *, threads: int, **arguments: Any) -> None:
    """`train_retriever` with `arguments`, in so many processes; errors as `torchrun.torchrun` says."""
    if processes == 1:
        train_retriever(threads=threads, **arguments)
        return
    with tempfile.TemporaryDirectory(prefix="earmark-training-") as folder:
        job = Path(folder, "job.pickle")
        job.write_bytes(pickle.dumps({"threads": max(1, threads // processes), **arguments}))
        torchrun(__name__, [str(job)], processes=processes, threads=threads)


def main(job: Path) -> None:
    """One of the processes."""
    # What the libraries will one day rename is no news to who trains.
    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate|sentence_transformers")
    with process():
        train_retriever(**pickle.loads(job.read_bytes()))  # noqa: S301 (written by `train_in_processes`)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
