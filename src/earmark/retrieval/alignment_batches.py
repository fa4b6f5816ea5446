"""What one training step of an alignment retriever sees: chunks, what is said in them, and terms to choose among."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from earmark.errors import InputError
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.chunk_batches import ChunkBatches
from earmark.retrieval.chunk_frames import ChunkFrames
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_targets import choose_surfaces, heard_surfaces, term_targets
from earmark.retrieval.term_units import TermUnits, pad_units

log = logging.getLogger(__name__)


class AlignmentBatches(ChunkBatches):
    """Collates rows {"chunk": index into `rows`} for `RetrieverTrainer`.

    A batch: "audio" is the model's input; "label" holds what `AlignmentLoss` compares it with: "said"[B, S] and
    "said_counts"[B], the transcript in units, and "units"[N, L], "unit_counts"[N], "terms"[B, N], the surfaces a chunk
    chooses among (none where `max_surfaces` is 0). Chunks whose transcript is empty, cannot be spelled (or their term),
    or has more units than frames are left out, and counted in the log; InputError if no chunk with a term is left.
    """

    def __init__(
        self,
        rows: Sequence[SplitRow],
        frames: ChunkFrames,
        surfaces: Mapping[str, str],
        units: TermUnits,
        augmentation: FrameAugmentation,
        *,
        max_surfaces: int,
        seed: int,
    ):
        # What was transcribed elsewhere need not hold the term's own words.
        spellable = [row for row in rows if row.term is None or units.spellings(row.term)]
        self.units = units
        self.said = _said(spellable, frames, units)
        super().__init__([row for row in rows if row.chunk_id in self.said], frames, augmentation, seed)
        if not any(row.has_term for row in self.rows):
            raise InputError(
                "no training chunk with a term has a transcript that can be spelled in units and fits its frames; see "
                "retrieval.alignment"
            )
        if len(self.rows) < len(rows):
            log.warning(
                "%d of %d training chunks are left out: nothing said in them, a word without pronunciation, or more "
                "units than frames", len(rows) - len(self.rows), len(rows),
            )  # fmt: skip
        heard = heard_surfaces(self.rows, surfaces)
        spelled = {surface: spellings for surface in heard if (spellings := units.spellings(surface))}
        self.surfaces = {surface: heard[surface] for surface in spelled}
        self.spelled = {surface: spellings[0] for surface, spellings in spelled.items()}
        self._sounds: dict[str, set[tuple[int, ...]]] = defaultdict(set)  # of each main term
        for surface, spellings in spelled.items():
            self._sounds[heard[surface]].update(map(tuple, spellings))
        self.max_surfaces = max_surfaces

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self.rows[item["chunk"]] for item in batch]
        audio = self.audio(rows)
        said = pad_units([self.said[row.chunk_id] for row in rows])
        label = {"said": said["units"], "said_counts": said["unit_counts"]}
        if self.max_surfaces:
            chosen = choose_surfaces(rows, self.surfaces, self.max_surfaces, self.random)
            label |= pad_units([self.spelled[surface] for surface in chosen])
            label["terms"] = term_targets(rows, chosen, self.surfaces, [self._alike(row, chosen) for row in rows])
        return {"audio": audio, "label": label}

    def _alike(self, row: SplitRow, chosen: Sequence[str]) -> set[str]:
        """Those of the surfaces that are spelled in units as a term of the chunk is."""
        heard = set().union(*(self._sounds.get(term, ()) for term in row.spoken_terms))
        return {surface for surface in chosen if tuple(self.spelled[surface]) in heard}

    def for_dev(self, rows: Sequence[SplitRow]) -> AlignmentBatches:
        """Batches of other rows, whose terms training hears, as they are: nothing is varied. Some may be left out."""
        said = _said([row for row in rows if row.term is None or row.term in self.surfaces], self.frames, self.units)
        batches = self._of_rows([row for row in rows if row.chunk_id in said])
        batches.said = said
        return batches


def _said(rows: Sequence[SplitRow], frames: ChunkFrames, units: TermUnits) -> dict[str, list[int]]:
    """The transcripts in units of those rows whose frames they fit into, by chunk id."""
    said = {row.chunk_id: units.transcript(row.text) for row in rows}
    return {chunk_id: ids for chunk_id, ids in said.items() if ids and frames.length(chunk_id) >= _frames(ids)}


def _frames(ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can say `ids`: one each, and a blank between two that are alike."""
    return len(ids) + sum(first == second for first, second in itertools.pairwise(ids))
