"""Deciding, from word times alone, which slices of a segment become chunks. No audio is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earmark.chunks.mentions import MentionFinder


@dataclass(frozen=True)
class SpokenTerm:
    """A mention with its times, in seconds from the segment's start."""

    term: str
    main_term: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class PlannedChunk:
    """A slice [start_s, end_s) of a segment around `term`, or a no-term slice where `term` is None."""

    start_s: float
    end_s: float
    term: SpokenTerm | None
    other_terms: tuple[str, ...]
    text: str

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def spoken_terms(words: Sequence[dict[str, Any]], finder: MentionFinder) -> list[SpokenTerm]:
    """The mentions of a segment's aligned words ({word, start_s, end_s}) with their times."""
    return [
        SpokenTerm(m.surface, m.main_term, words[m.first]["start_s"], words[m.last - 1]["end_s"])
        for m in finder.find([word["word"] for word in words])
    ]


def term_chunk(
    term: SpokenTerm, terms: Sequence[SpokenTerm], words: Sequence[dict[str, Any]], duration_s: float, context_s: float
) -> PlannedChunk:
    """The slice of `context_s` on each side of `term`, kept inside the segment of `duration_s`.

    Another term is heard in it where all words of that term stand in the slice's text.
    """
    start_s = max(0.0, term.start_s - context_s)
    end_s = min(duration_s, term.end_s + context_s)
    inside = _words_inside(words, start_s, end_s)
    heard = {t.main_term for t in terms if all(w in inside for w in _words_inside(words, t.start_s, t.end_s))}
    return PlannedChunk(start_s, end_s, term, tuple(sorted(heard - {term.main_term})), _text(inside))


def no_term_chunk(
    length_s: float,
    terms: Sequence[SpokenTerm],
    words: Sequence[dict[str, Any]],
    duration_s: float,
    random: np.random.Generator,
) -> PlannedChunk | None:
    """A slice of `length_s` that touches no spoken term, drawn evenly from all places it fits; None if none does."""
    edges = [0.0, *(edge for term in terms for edge in (term.start_s, term.end_s)), duration_s]
    gaps = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end - start >= length_s]
    if not gaps:
        return None
    room = np.array([end - start - length_s for start, end in gaps])
    place = random.choice(len(gaps), p=room / room.sum()) if room.sum() > 0 else 0
    start_s = gaps[place][0] + random.uniform(0.0, room[place])
    end_s = min(start_s + length_s, gaps[place][1])
    return PlannedChunk(start_s, end_s, None, (), _text(_words_inside(words, start_s, end_s)))


def segment_random(seed: int, segment_id: str) -> np.random.Generator:
    """A generator that depends on the seed and the segment alone: shards and order do not matter."""
    digest = hashlib.blake2b(segment_id.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest)])


def _words_inside(words: Sequence[dict[str, Any]], start_s: float, end_s: float) -> list[dict[str, Any]]:
    """The words of which at least half lies inside."""
    return [w for w in words if start_s <= (w["start_s"] + w["end_s"]) / 2 < end_s]


def _text(words: Sequence[dict[str, Any]]) -> str:
    return " ".join(w["word"] for w in words)
