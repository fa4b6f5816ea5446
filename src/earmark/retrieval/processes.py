"""Training in several processes, one a GPU: each hears its share of a batch, all judge the whole of it.

Every process draws the same batch, of all its chunks, runs the audio route on its own share of them, and gathers what
that gives for the others: a vector, a score or a loss a chunk, never frames. Then each computes the whole objective. So
contrastive losses see the same negatives as one process would, and the number of processes shapes nothing but the
order in which floats are added (and which chunk draws which dropout).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from sentence_transformers.util.distributed import all_gather_with_grad
from torch import distributed

Value = TypeVar("Value")

# The others wait while the first evaluates. torchrun notices a process that died; no clock has to.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Processes:
    """The processes of a training, `count` of them, of which this is number `rank`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Self:
        """The group that torchrun started this process in, joined; a group of one where it did not."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if not distributed.is_initialized():
            if torch.cuda.is_available():
                device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(device)
                distributed.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
            else:
                distributed.init_process_group("gloo", timeout=_PATIENCE)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and evaluates."""
        return self.rank == 0

    def of_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives in the first process; the others wait for it, and do not call it."""
        made: list[Any] = [make() if self.first else None]
        if self.count > 1:
            distributed.broadcast_object_list(made)
        return made[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def share(self, batch: Any) -> Any:
        """This process's part of a tensor[B, ...], or of all tensors of a dict: ceil(B / count) rows of it.

        Where B does not divide, rows from the beginning fill the last shares up; `gathered` drops them.
        """
        if self.count == 1:
            return batch
        if isinstance(batch, dict):
            return {name: self.share(value) for name, value in batch.items()}
        if not isinstance(batch, torch.Tensor):
            return batch
        rows = -(-len(batch) // self.count)
        mine = torch.arange(self.rank * rows, (self.rank + 1) * rows, device=batch.device) % len(batch)
        return batch[mine]

    def gathered(self, share: torch.Tensor, rows: int) -> torch.Tensor:
        """The whole tensor[rows, ...] of which every process has a `share`.

        Gradients flow back to all shares, summed over the processes; averaging parameters' gradients, as
        DistributedDataParallel does, makes them those of one process.
        """
        return share if self.count == 1 else all_gather_with_grad(share.contiguous())[:rows]

    def averaged(self, parameter: torch.nn.Parameter) -> None:
        """Average the gradient of a parameter that DistributedDataParallel does not know of."""
        if self.count > 1 and parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= self.count
