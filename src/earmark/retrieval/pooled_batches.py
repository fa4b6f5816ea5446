"""What one training step of a pooled retriever sees: chunks, surfaces to choose among, and phrases spoken in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_targets import choose_surfaces, heard_surfaces, term_targets
from earmark.retrieval.text_tower import SpellingTower


def spoken_phrases(text: str, longest: int) -> list[str]:
    """All runs of 1 to `longest` words of a transcript, each once.

    >>> spoken_phrases("so it goes", 2)
    ['so', 'it', 'goes', 'so it', 'it goes']
    """
    parts = text.split()
    runs = (
        " ".join(parts[start : start + size])
        for size in range(1, longest + 1)
        for start in range(len(parts) - size + 1)
    )
    return list(dict.fromkeys(runs))


class PooledBatches:
    """Collates rows {"chunk": index into `rows`} for `RetrieverTrainer`.

    A batch: "audio", "surfaces" and "phrases" are inputs of the model; "label" holds the targets of `TermLoss`
    ("terms"[B, N]) and `WordLoss` ("phrases"[B, W]). Surfaces are those of the batch's terms, filled up with others of
    terms that training hears to `max_surfaces`: a term without training audio is never a negative, so the model does
    not learn that it is absent. Phrases are drawn from the batch's own transcripts.
    """

    valid_label_columns: tuple[str, ...] = ()  # the trainer asks; our only column is an index, none is a label

    def __init__(
        self,
        rows: Sequence[SplitRow],
        frames: ChunkFrames,
        surfaces: dict[str, str],
        tower: SpellingTower,
        augmentation: FrameAugmentation,
        *,
        max_surfaces: int,
        max_phrases: int,
        longest_phrase: int,
        seed: int,
    ):
        self.rows, self.frames, self.tower, self.augmentation = rows, frames, tower, augmentation
        self.surfaces = heard_surfaces(rows, surfaces)
        self.max_surfaces, self.max_phrases, self.longest_phrase = max_surfaces, max_phrases, longest_phrase
        self.seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw from here on what the epoch of that number draws, whichever epochs came before."""
        self.random = np.random.default_rng((self.seed, epoch))

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self.rows[item["chunk"]] for item in batch]
        surfaces = choose_surfaces(rows, self.surfaces, self.max_surfaces, self.random)
        spoken = [set(spoken_phrases(row.text, self.longest_phrase)) for row in rows]
        phrases = self._choose_phrases(spoken) or surfaces[:1]  # a batch may hold no whole word; then nothing is spoken
        frames, lengths = self.frames.batch([row.chunk_id for row in rows])
        frames, lengths = self.augmentation(frames, lengths, self.random)
        return {
            "audio": {"frames": frames, "frame_lengths": lengths, "modality": "audio"},
            "surfaces": {**self.tower.preprocess(surfaces), "modality": "text"},
            "phrases": {**self.tower.preprocess(phrases), "modality": "text"},
            "label": {
                "terms": term_targets(rows, surfaces, self.surfaces),
                "phrases": torch.tensor([[phrase in said for phrase in phrases] for said in spoken]),
            },
        }

    def _choose_phrases(self, spoken: list[set[str]]) -> list[str]:
        phrases = sorted(set().union(*spoken))
        if len(phrases) > self.max_phrases:
            chosen = self.random.choice(len(phrases), self.max_phrases, replace=False)
            phrases = [phrases[index] for index in sorted(chosen)]
        return phrases
