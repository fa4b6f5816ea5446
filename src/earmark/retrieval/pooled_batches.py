"""What one training step of a pooled retriever sees: chunks, surfaces to choose among, and phrases spoken in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from earmark.pronunciations import EnglishPronouncer
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_batches import ChunkBatches
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.homophones import KnownWays
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_loss import IGNORED, NOT_SPOKEN, SPOKEN
from earmark.retrieval.term_targets import choose_surfaces, heard_surfaces, term_targets
from earmark.retrieval.text_model_tower import TextModelTower
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


class PooledBatches(ChunkBatches):
    """Collates rows {"chunk": index into `rows`} for `RetrieverTrainer`.

    A batch: "audio", "surfaces" and "phrases" are inputs of the model; "label" holds the targets of `TermLoss`
    ("terms"[B, N]) and `WordLoss` ("phrases"[B, W]). Surfaces are those of the batch's terms, filled up with others of
    terms that training hears to `max_surfaces`: a term without training audio is never a negative, so the model does
    not learn that it is absent. Phrases are drawn from the batch's own transcripts. What is said like something in the
    chunk (by `pronouncer`; None: not known) is no negative of it either.

    With `hard_negatives` (surface -> others), a batch that has some also holds "negatives", an input of the model, and
    "against"[B, M] for `HardNegativeMarginLoss`: for each chunk at most `max_negatives` of its surface's, drawn anew,
    and none that is heard in the chunk.
    """

    def __init__(
        self,
        rows: Sequence[SplitRow],
        frames: ChunkFrames,
        surfaces: dict[str, str],
        tower: SpellingTower | TextModelTower | Qwen2TextTower,
        augmentation: FrameAugmentation,
        *,
        max_surfaces: int,
        max_phrases: int,
        longest_phrase: int,
        seed: int,
        pronouncer: EnglishPronouncer | None = None,
        hard_negatives: Mapping[str, Sequence[str]] | None = None,
        max_negatives: int = 0,
    ):
        super().__init__(rows, frames, augmentation, seed)
        self.tower = tower
        self.surfaces = heard_surfaces(rows, surfaces)
        self._ways = KnownWays(pronouncer)
        self._ways_of_terms: dict[str, set[str]] = defaultdict(set)
        for surface, term in self.surfaces.items():
            self._ways_of_terms[term].update(self._ways(surface))
        self.hard_negatives, self.max_negatives = hard_negatives or {}, max_negatives
        self.max_surfaces, self.max_phrases, self.longest_phrase = max_surfaces, max_phrases, longest_phrase

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self.rows[item["chunk"]] for item in batch]
        surfaces = choose_surfaces(rows, self.surfaces, self.max_surfaces, self.random)
        spoken = [set(spoken_phrases(row.text, self.longest_phrase)) for row in rows]
        phrases = self._choose_phrases(spoken) or surfaces[:1]  # a batch may hold no whole word; then nothing is spoken
        ways = [self._ways_heard(row, said) for row, said in zip(rows, spoken, strict=True)]
        collated = {
            "audio": self.audio(rows),
            "surfaces": self._texts(surfaces),
            "phrases": self._texts(phrases),
            "label": {
                "terms": term_targets(rows, surfaces, self.surfaces, [self._alike(surfaces, heard) for heard in ways]),
                "phrases": self._phrase_targets(phrases, spoken, ways),
            },
        }
        by_chunk = [self._choose_negatives(row, *about) for row, *about in zip(rows, spoken, ways, strict=True)]
        if negatives := sorted(set().union(*by_chunk)):
            collated["negatives"] = self._texts(negatives)
            collated["label"]["against"] = torch.tensor([[text in own for text in negatives] for own in by_chunk])
        return collated

    def for_dev(self, rows: Sequence[SplitRow]) -> PooledBatches:
        """Batches of other rows, whose terms training hears, as they are: nothing is varied."""
        known = [row for row in rows if row.term is None or row.term in self.surfaces]
        return self._of_rows(known)

    def _texts(self, texts: list[str]) -> dict[str, Any]:
        return {**self.tower.preprocess(texts), "modality": "text"}

    def _ways_heard(self, row: SplitRow, spoken: set[str]) -> set[str]:
        """How all that is heard in a chunk is said, its `spoken` phrases and its terms."""
        of_terms = (self._ways_of_terms.get(term, ()) for term in row.spoken_terms)
        return set().union(*map(self._ways, spoken), *of_terms)

    def _alike(self, surfaces: Sequence[str], ways: set[str]) -> set[str]:
        """Those of `surfaces` that may be said in one of these ways."""
        return {surface for surface in surfaces if not ways.isdisjoint(self._ways(surface))}

    def _phrase_targets(self, phrases: list[str], spoken: list[set[str]], ways: list[set[str]]) -> torch.Tensor:
        """targets[B, W] of `WordLoss`."""
        ways_of_phrases = [self._ways(phrase) for phrase in phrases]
        targets = torch.full((len(spoken), len(phrases)), NOT_SPOKEN)
        for row, (said, heard) in enumerate(zip(spoken, ways, strict=True)):
            for column, phrase in enumerate(phrases):
                if phrase in said:
                    targets[row, column] = SPOKEN
                elif not heard.isdisjoint(ways_of_phrases[column]):
                    targets[row, column] = IGNORED
        return targets

    def _choose_negatives(self, row: SplitRow, spoken: set[str], ways: set[str]) -> set[str]:
        others = [
            other
            for other in self.hard_negatives.get(row.term or "", ())
            if other in self.surfaces and self.surfaces[other] not in row.spoken_terms and other not in spoken
        ]
        alike = self._alike(others, ways)
        others = [other for other in others if other not in alike]
        if len(others) > self.max_negatives:
            chosen = self.random.choice(len(others), self.max_negatives, replace=False)
            others = [others[index] for index in sorted(chosen)]
        return set(others)

    def _choose_phrases(self, spoken: list[set[str]]) -> list[str]:
        phrases = sorted(set().union(*spoken))
        if len(phrases) > self.max_phrases:
            chosen = self.random.choice(len(phrases), self.max_phrases, replace=False)
            phrases = [phrases[index] for index in sorted(chosen)]
        return phrases
