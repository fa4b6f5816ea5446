"""Deciding, from word times alone, which slices of a segment become chunks. No audio is read here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from earmark.artifacts import UNKNOWN_WORD
from earmark.mentions import Mention


@dataclass(frozen=True)
class SpokenTerm:
    """A mention with its times, in seconds from the segment's start; `trusted` if those of all its words are."""

    term: str
    main_term: str
    start_s: float
    end_s: float
    trusted: bool = True


@dataclass(frozen=True)
class PlannedChunk:
    """A slice [start_s, end_s) of a segment around `term`, or a no-term slice where `term` is None."""

    start_s: float
    end_s: float
    term: SpokenTerm | None
    other_terms: tuple[str, ...]
    touched_terms: tuple[str, ...]
    text: str

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def timed(mentions: Iterable[Mention], words: Sequence[dict[str, Any]]) -> list[SpokenTerm]:
    """The mentions of a segment's aligned words ({word, start_s, end_s, trusted}) with their times."""
    return [
        SpokenTerm(
            m.surface,
            m.main_term,
            words[m.first]["start_s"],
            words[m.last - 1]["end_s"],
            all(word["trusted"] for word in words[m.first : m.last]),
        )
        for m in mentions
    ]


def term_chunk(
    term: SpokenTerm,
    terms: Sequence[SpokenTerm],
    words: Sequence[dict[str, Any]],
    duration_s: float,
    context_s: tuple[float, float],
) -> PlannedChunk:
    """The slice of `context_s` before and after `term`, kept inside the segment of `duration_s`.

    Another of the segment's `terms` is heard in it where all words of that term stand in the slice's text.
    """
    start_s = max(0.0, term.start_s - context_s[0])
    end_s = min(duration_s, term.end_s + context_s[1])
    inside = _words_inside(words, start_s, end_s)
    heard = {t.main_term for t in terms if all(w in inside for w in _words_inside(words, t.start_s, t.end_s))}
    return PlannedChunk(start_s, end_s, term, tuple(sorted(heard - {term.main_term})), (), _text(inside))


def jittered(context_s: float, jitter_s: float, random: np.random.Generator) -> tuple[float, float]:
    """The context before and after a term, each drawn evenly from `context_s` plus or minus `jitter_s`, not below 0."""
    before_s, after_s = context_s + random.uniform(-jitter_s, jitter_s, 2)
    return max(0.0, before_s), max(0.0, after_s)


def free_gaps(
    occurrences: Sequence[SpokenTerm], words: Sequence[dict[str, Any]], duration_s: float
) -> list[tuple[float, float]]:
    """The stretches (start_s, end_s) of a segment in which no part of any surface is spoken.

    A word whose times are not trusted leaves none beside it: a surface may be spoken where the word is said to be.
    """
    taken = [(term.start_s, term.end_s) for term in occurrences]
    taken += [(word["start_s"], word["end_s"]) for word in words if not word["trusted"]]
    gaps, free_from_s = [], 0.0
    for start_s, end_s in sorted(taken):
        if start_s > free_from_s:
            gaps.append((free_from_s, start_s))
        free_from_s = max(free_from_s, end_s)
    if duration_s > free_from_s:
        gaps.append((free_from_s, duration_s))
    return gaps


def no_term_chunk(length_s: float, gaps: Sequence[tuple[float, float]], random: np.random.Generator) -> PlannedChunk:
    """A slice of `length_s` without its text, drawn evenly from all places in `gaps` that hold it; one gap must."""
    fitting = [(start, end) for start, end in gaps if end - start >= length_s]
    room = np.array([end - start - length_s for start, end in fitting])
    place = random.choice(len(fitting), p=room / room.sum()) if room.sum() > 0 else 0
    start_s = fitting[place][0] + random.uniform(0.0, room[place])
    end_s = min(start_s + length_s, fitting[place][1])
    return PlannedChunk(start_s, end_s, None, (), (), "")


def with_text(chunk: PlannedChunk, words: Sequence[dict[str, Any]]) -> PlannedChunk:
    """The chunk with those of its segment's words that lie in it."""
    return replace(chunk, text=_text(_words_inside(words, chunk.start_s, chunk.end_s)))


def with_touched(chunk: PlannedChunk, names: Iterable[SpokenTerm], named: Collection[str]) -> PlannedChunk:
    """The chunk with its touched_terms, for the splits: the main terms of those of the segment's `names` (all surfaces
    and dropped aliases, nested in longer ones too) that lie in it, even in part, and those `named` in its text."""
    touched = {name.main_term for name in names if name.start_s < chunk.end_s and name.end_s > chunk.start_s}
    return replace(chunk, touched_terms=tuple(sorted(touched.union(named))))


def no_term_lengths(term_lengths_s: Sequence[float], room_s: Sequence[float], ratio: float) -> list[float]:
    """Lengths of the no-term chunks, longest first: as many as fit, up to `ratio` times the term chunks.

    `room_s[i]` is the longest free gap of segment i, which takes one chunk. The lengths are evenly spaced quantiles of
    the term chunks', so that length does not tell the two kinds apart; where room is short there are fewer of them,
    not shorter ones.
    """
    rooms = np.sort(np.asarray(room_s))[::-1]
    ordered = np.sort(np.asarray(term_lengths_s))[::-1]

    def lengths(count: int) -> np.ndarray:
        return ordered[((np.arange(count) + 0.5) * len(ordered) / count).astype(int)]

    # The i-th longest needs the i-th largest room: if every pair fits, all can be placed, and only then. Fewer lengths
    # are shorter at every i, so the largest number that fits can be searched by halving.
    most, none = 0, min(round(ratio * len(ordered)), len(rooms)) + 1
    while none - most > 1:
        count = (most + none) // 2
        if (lengths(count) <= rooms[:count]).all():
            most = count
        else:
            none = count
    return lengths(most).tolist() if most else []


def random_of(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the seed and a segment's or chunk's id alone: shards and order do not matter."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest)])


def _words_inside(words: Sequence[dict[str, Any]], start_s: float, end_s: float) -> list[dict[str, Any]]:
    """The words of which at least half lies inside."""
    return [w for w in words if start_s <= (w["start_s"] + w["end_s"]) / 2 < end_s]


def _text(words: Sequence[dict[str, Any]]) -> str:
    return " ".join(w["word"] for w in words if w["word"] != UNKNOWN_WORD)
