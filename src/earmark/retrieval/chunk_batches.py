"""What the batches of both kinds of retriever share: chunks by index, their varied frames, and whence they draw."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from earmark.retrieval.augmentation import UNCHANGED, FrameAugmentation
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.split_rows import SplitRow


class ChunkBatches:
    """Collates rows {"chunk": index into `rows`} for `RetrieverTrainer`."""

    valid_label_columns: tuple[str, ...] = ()  # the trainer asks; our only column is an index, none is a label

    def __init__(self, rows: Sequence[SplitRow], frames: ChunkFrames, augmentation: FrameAugmentation, seed: int):
        self.rows, self.frames, self.augmentation, self.seed = rows, frames, augmentation, seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw from here on what the epoch of that number draws, whichever epochs came before."""
        self.random = np.random.default_rng((self.seed, epoch))

    def audio(self, rows: Sequence[SplitRow]) -> dict[str, Any]:
        """The model's input: "frames"[B, T, dim], "frame_lengths"[B]."""
        frames, lengths = self.frames.batch([row.chunk_id for row in rows])
        frames, lengths = self.augmentation(frames, lengths, self.random)
        return {"frames": frames, "frame_lengths": lengths, "modality": "audio"}

    def _of_rows(self, rows: Sequence[SplitRow]) -> Self:
        """The same for other rows, none of them varied."""
        batches = copy.copy(self)
        batches.rows, batches.augmentation = rows, UNCHANGED
        return batches
