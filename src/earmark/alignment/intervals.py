"""What every aligner's result must satisfy before it is an alignment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WordInterval:
    """One aligned word; seconds from the segment's start. `score` is the aligner's own, None where it has none."""

    word: str
    start_s: float
    end_s: float
    score: float | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def words_problem(found: list[str], expected: list[str]) -> str | None:
    """How the aligned words differ from the transcript's, or None."""
    if found == expected:
        return None
    position = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    heard = found[position] if position < len(found) else "nothing"
    said = expected[position] if position < len(expected) else "nothing"
    return f"word {position + 1} of {len(expected)} is {said!r}, the aligner returned {heard!r}"


def clip_intervals(words: list[WordInterval], duration_s: float) -> list[WordInterval]:
    """Cut off what lies outside the segment; a word that lies outside altogether comes out empty.

    Where a segment is cut tightly around its speech, an aligner that pads it lets the first and last word run into
    the padding: by 50 ms in front, through all of it behind (measured on 361 spans cut from real utterances).
    """
    return [WordInterval(w.word, max(0.0, w.start_s), min(duration_s, w.end_s), w.score) for w in words]


def intervals_problem(words: list[WordInterval], duration_s: float) -> str | None:
    """What is wrong with the times (unordered, overlapping, empty, outside the segment), or None."""
    previous_end_s = 0.0
    for number, word in enumerate(words, start=1):
        where = f"word {number} {word.word!r} at {word.start_s:.3f} to {word.end_s:.3f} s"
        if word.end_s <= word.start_s:
            return f"{where} is empty"
        if word.start_s < previous_end_s - 1e-6:
            return f"{where} begins before {previous_end_s:.3f} s, where the word before it ends"
        if word.end_s > duration_s + 1e-6:
            return f"{where} ends after the segment's {duration_s:.3f} s"
        previous_end_s = word.end_s
    return None
