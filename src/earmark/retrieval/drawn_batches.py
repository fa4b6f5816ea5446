"""Batches that a training can go on with in the middle of an epoch, drawing what it would have drawn."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np

_REMEMBERED = 4  # the loader draws one batch ahead


class Batches(Protocol):
    """What a recipe collates with; all that varies from batch to batch is drawn from `random`."""

    random: np.random.Generator
    valid_label_columns: tuple[str, ...]

    def start_epoch(self, epoch: int) -> None: ...

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]: ...


class DrawnBatches:
    """Collates as `batches` do, and knows the generator's state before each of the last few.

    The loader is ahead of the training, so the state after a step is not the one that the next step's batch began with.
    """

    def __init__(self, batches: Batches):
        self.batches = batches
        self.valid_label_columns = batches.valid_label_columns
        self.resumed: dict[str, Any] | None = None  # the state that the first epoch goes on from, if within it
        self.start_epoch(0, 0)

    def start_epoch(self, epoch: int, done: int) -> None:
        """Draw from here on what the epoch of that number draws after `done` batches."""
        self.batches.start_epoch(epoch)
        self._drawn, self._states = done, deque[dict[str, Any]](maxlen=_REMEMBERED)
        if self.resumed is not None and done:
            self.batches.random.bit_generator.state = self.resumed
        self.resumed = None

    def state_before(self, batch: int) -> dict[str, Any]:
        """The generator's state, as JSON can hold it, before batch number `batch` of the epoch."""
        ahead = self._drawn - batch
        return dict(self._states[-ahead] if ahead else self.batches.random.bit_generator.state)

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        self._states.append(dict(self.batches.random.bit_generator.state))
        self._drawn += 1
        return self.batches(batch)
