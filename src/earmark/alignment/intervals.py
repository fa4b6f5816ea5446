"""Word intervals, and what every aligner's result must satisfy before it is an alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from earmark import text
from earmark.artifacts import UNKNOWN_WORD

UNKNOWN = UNKNOWN_WORD  # an aligner's placeholder for a word that it could not spell; no normalised word looks like it
ROUNDING_S = 0.002  # neighbours may overlap, and ends exceed the segment, by what aligners round to


@dataclass(frozen=True, slots=True)
class WordInterval:
    """One aligned word; seconds from the segment's start.

    `score` is the aligner's own, None where it has none. `trusted` is False where the aligner did not know how the
    word, or one beside it, is pronounced: its times may be far off.
    """

    word: str
    start_s: float
    end_s: float
    score: float | None = None
    trusted: bool = True

    def as_row(self) -> dict[str, Any]:
        # Written out: dataclasses.asdict copies deeply, which takes as long as all the rest of a segment.
        return {
            "word": self.word,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "score": self.score,
            "trusted": self.trusted,
        }


def normalised(words: Sequence[WordInterval]) -> list[WordInterval]:
    """The intervals with words as `text.words` spells them; what is no word is dropped, UNKNOWN stays.

    An interval of several words ("twenty-one", or a Chinese word, of which each character is one) is divided in
    proportion to their letters: the outer borders are the aligner's, those inside are interpolated.
    """
    result = []
    for interval in words:
        if interval.word == UNKNOWN:
            result.append(interval)
            continue
        parts = text.words(interval.word)
        letters = sum(map(len, parts))
        start_s, done = interval.start_s, 0
        for part in parts:
            done += len(part)
            share = done / letters
            end_s = interval.end_s if share == 1 else interval.start_s + share * (interval.end_s - interval.start_s)
            result.append(replace(interval, word=part, start_s=start_s, end_s=end_s))
            start_s = end_s
    return result


@dataclass(frozen=True, slots=True)
class Comparison:
    """Aligned words held against the transcript: `words` with every UNKNOWN spelled that the transcript spells.

    Where the transcript has words and nothing was aligned, an UNKNOWN fills the time: something is spoken there.
    """

    words: list[WordInterval]
    differing: int  # words to insert, delete or replace to turn one into the other
    problem: str | None  # the first difference, in words


def compare_words(found: Sequence[WordInterval], expected: Sequence[str], duration_s: float) -> Comparison:
    """Hold normalised intervals of a segment of `duration_s` against the transcript's words.

    An UNKNOWN takes the transcript's word where just as many words stand between the same neighbours on both sides.
    """
    heard = [interval.word for interval in found]
    if heard == list(expected):
        return Comparison(list(found), 0, None)
    words, differing, problem = [], 0, None
    for kind, i, j, k, m in SequenceMatcher(None, heard, expected, autojunk=False).get_opcodes():
        if kind == "replace" and j - i == m - k:
            pairs = list(zip(found[i:j], expected[k:m], strict=True))
            words += [replace(f, word=e) if f.word == UNKNOWN else f for f, e in pairs]
            wrong = next(((n, f, e) for n, (f, e) in enumerate(pairs) if f.word != UNKNOWN), None)
            differing += sum(f.word != UNKNOWN for f, _ in pairs)
            if wrong and problem is None:
                problem = _difference(k + wrong[0], len(expected), wrong[2], wrong[1].word)
            continue
        words += found[i:j]
        if kind == "insert":
            start_s = found[i - 1].end_s if i else 0.0
            end_s = found[i].start_s if i < len(found) else duration_s
            if end_s > start_s:
                words.append(WordInterval(UNKNOWN, start_s, end_s, trusted=False))
        if kind != "equal":
            differing += max(j - i, m - k)
            said = expected[k] if k < m else "nothing"
            problem = problem or _difference(k, len(expected), said, heard[i] if i < j else "nothing")
    return Comparison(words, differing, problem)


def _difference(position: int, total: int, said: str, heard: str) -> str:
    return f"word {position + 1} of {total} is {said!r}, the aligner returned {heard!r}"


def clip_intervals(words: Sequence[WordInterval], duration_s: float) -> list[WordInterval]:
    """Cut off what lies outside the segment; a word that lies outside altogether comes out empty.

    Where a segment is cut tightly around its speech, an aligner that pads it lets the first and last word run into
    the padding: by 50 ms in front, through all of it behind (measured on 361 spans cut from real utterances).
    """
    return [replace(w, start_s=max(0.0, w.start_s), end_s=min(duration_s, w.end_s)) for w in words]


def without_rounding(words: Sequence[WordInterval], duration_s: float) -> list[WordInterval]:
    """The intervals without overlaps and overhangs of up to ROUNDING_S, which are no error of the alignment."""
    result: list[WordInterval] = []
    for word in words:
        previous_end_s = result[-1].end_s if result else 0.0
        start_s, end_s = word.start_s, word.end_s
        if previous_end_s - ROUNDING_S <= start_s < previous_end_s:
            start_s = previous_end_s
        if duration_s < end_s <= duration_s + ROUNDING_S:
            end_s = duration_s
        result.append(replace(word, start_s=start_s, end_s=end_s))
    return result


def intervals_problem(words: Sequence[WordInterval], duration_s: float) -> str | None:
    """What is wrong with the times (unordered, overlapping, empty, outside the segment, no number), or None."""
    previous_end_s = 0.0
    for number, word in enumerate(words, start=1):
        where = f"word {number} {word.word!r} at {word.start_s:.3f} to {word.end_s:.3f} s"
        if not word.end_s > word.start_s:
            return f"{where} is empty"
        if word.start_s < previous_end_s - 1e-6:
            return f"{where} begins before {previous_end_s:.3f} s, where the word before it ends"
        if not word.end_s <= duration_s + 1e-6:
            return f"{where} ends after the segment's {duration_s:.3f} s"
        previous_end_s = word.end_s
    return None
