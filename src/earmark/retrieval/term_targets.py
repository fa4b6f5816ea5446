"""Which surfaces the chunks of a training step choose among, and which of them are spoken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch

from earmark.errors import InputError
from earmark.retrieval.split_rows import SplitRow
from earmark.retrieval.term_loss import IGNORED, NOT_SPOKEN, SPOKEN


def heard_surfaces(rows: Sequence[SplitRow], surfaces: Mapping[str, str]) -> dict[str, str]:
    """Those of `surfaces` (surface -> main term) whose term some row holds.

    A term without training audio is never a negative, so a model does not learn that it is absent. InputError if the
    glossary does not know a row's term.
    """
    for row in rows:
        if row.term is not None and surfaces.get(row.term) != row.main_term:
            raise InputError(
                f"chunk {row.chunk_id}: the glossary does not know {row.term!r} as {row.main_term!r}; "
                "run the glossary and chunk stages again"
            )
    heard = {term for row in rows for term in row.spoken_terms}
    return {surface: term for surface, term in surfaces.items() if term in heard}


def choose_surfaces(
    rows: Sequence[SplitRow], surfaces: Mapping[str, str], most: int, random: np.random.Generator
) -> list[str]:
    """The rows' own surfaces, filled up with others to `most`, drawn anew for every step."""
    needed = dict.fromkeys(row.term for row in rows if row.term is not None)
    others = [surface for surface in surfaces if surface not in needed]
    room = max(0, most - len(needed))
    if len(others) > room:
        others = [others[index] for index in sorted(random.choice(len(others), room, replace=False))]
    return [*needed, *others]


def term_targets(
    rows: Sequence[SplitRow], chosen: Sequence[str], surfaces: Mapping[str, str], alike: Sequence[Set[str]]
) -> torch.Tensor:
    """targets[B, N] of `TermLoss`: SPOKEN, NOT_SPOKEN, or IGNORED.

    Ignored are further surfaces of what is spoken, and those that are said like something in the chunk: `alike`, a set
    for each row.
    """
    return torch.tensor(
        [
            [_target(row, surface, surfaces, sounding) for surface in chosen]
            for row, sounding in zip(rows, alike, strict=True)
        ]
    )


def _target(row: SplitRow, surface: str, surfaces: Mapping[str, str], alike: Set[str]) -> int:
    if surface == row.term:
        return SPOKEN
    return IGNORED if surfaces[surface] in row.spoken_terms or surface in alike else NOT_SPOKEN
