"""Praat's TextGrid files, as the Montreal Forced Aligner and others write them, and the words in them."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import inf, isfinite, nan
from operator import itemgetter, le
from typing import NoReturn

from earmark.alignment.intervals import UNKNOWN, WordInterval
from earmark.errors import InputError

# Decoration, then a value: a quoted text, a number, a flag, or the file's end. `_VALUE` matches at every place and
# nothing in it backtracks, so reading is linear in the file's size. An unclosed quote runs to the end of the file.
_DECORATION = r"""\s*+(?:(?:[a-zA-Z=\[][^\s"]*+|![^\n\r]*+|(?![-+]?\d|<(?:exists|absent)>)[^\s"]++)\s*+)*+"""
_TEXT, _NUMBER = r'"(?:[^"]++|"")*+"?+', r'[-+]?\d[^\s"]*+'
_VALUE = re.compile(rf"{_DECORATION}({_TEXT}|{_NUMBER}|<exists>|<absent>|\Z)", re.ASCII)
_HEAD = re.compile(
    rf'{_DECORATION}"ooTextFile(?: short)?"{_DECORATION}"TextGrid"'
    rf"{_DECORATION}{_NUMBER}{_DECORATION}{_NUMBER}{_DECORATION}<exists>{_DECORATION}(\d++){_DECORATION}\Z",
    re.ASCII,
)
_NO_VALUE = re.compile(rf"{_DECORATION}\Z", re.ASCII)
_TIER_HEAD = re.compile(
    rf"{_DECORATION}({_TEXT}){_DECORATION}({_NUMBER}){_DECORATION}({_NUMBER}){_DECORATION}(\d++)(?=\s)", re.ASCII
)
_DECORATING = b"abcdefghijklmnopqrstuvwxyz[]: "
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# Labels that are no word, in lower case. What stands in no brackets may be one after all ("the silence").
_SILENCE = frozenset(
    [
        *("<eps>", "<sil>", "<s>", "</s>", "<silence>", "<pau>", "<pause>", "<p>", "<p:>", "<sp>", "{sl}", "{ns}"),
        *("[sil]", "[silence]", "[pause]", "[sp]", "(sil)", "(pau)", "(...)", "...", "#", "##", "#h", "h#", "_", "-"),
        *("!sil", "sil", "sp", "pau", "silence"),
    ]
)
_UNKNOWN = frozenset(
    [
        *("<unk>", "[unk]", "{unk}", "(unk)", "!unk", "<unknown>", "[unknown]", "<oov>", "[oov]", "<spn>", "[spn]"),
        *("unk", "oov", "spn"),
    ]
)
_NO_PRONUNCIATION = frozenset(["spn", "<spn>", "[spn]"])
_BINARY = "is a binary TextGrid; save it as text in Praat (Save as text file)"
_DIGITS = 15  # of a size: more is no size, and Python refuses to read thousands
_LAST_INTERVAL = 300  # characters that hold the last interval, unless its label is a long one
_WORDS_TIER = ("words", "word")
_PHONES_TIER = ("phones", "phone")


@dataclass(frozen=True)
class IntervalTier:
    """One tier of labelled intervals; they are read from `content` when they are asked for."""

    name: str
    start_s: float
    end_s: float
    size: int  # intervals, as the file states it
    content: str  # what the file holds from there to the next tier
    where: str

    @cached_property
    def intervals(self) -> list[tuple[float, float, str]]:
        """(start_s, end_s, label), ordered by start_s; they may overlap. InputError where the content is not that."""
        try:
            starts_s, ends_s, labels = _seconds(*self._usual())
        except ValueError:
            starts_s, ends_s, labels = self._any()
        if not isfinite(sum(starts_s) + sum(ends_s)):
            self._fail("has a time that is not finite")
        if starts_s != sorted(starts_s):
            self._fail("has intervals that are not in order of time")
        if not all(map(le, starts_s, ends_s)):
            start_s, end_s = next(pair for pair in zip(starts_s, ends_s, strict=True) if pair[0] > pair[1])
            self._fail(f"has an interval that ends at {end_s} s, before it begins at {start_s} s")
        return list(zip(starts_s, ends_s, labels, strict=True))

    def _usual(self) -> tuple[list[str], list[str], list[str]]:
        """Starts, ends and labels of content as Praat and MFA write it, all at once; ValueError for anything else."""
        pieces = self.content.split('"')
        if not self.size or len(pieces) != 2 * self.size + 1 or not _NO_VALUE.match(pieces.pop()):
            raise ValueError("a quote in a label, a comment, or a wrong size")
        if "=" not in pieces[0]:
            times = ' " '.join(pieces[0::2]).split()
            if len(times) != 3 * self.size - 1:
                raise ValueError("decorated in some other way")
            return times[0::3], times[1::3], pieces[1::2]
        # `intervals [1]: xmin = 0.5 xmax = 1 text =` becomes `1=0.5=1=`, unless a number has an `e` too
        decorated = "".join(pieces[0::2])
        times = decorated.encode().translate(None, _DECORATING).decode().split("=")
        if len(times) != 3 * self.size + 1 or decorated.count("e") != 2 * self.size:
            raise ValueError("decorated in some other way")
        return times[1::3], times[2::3], pieces[1::2]

    def _any(self) -> tuple[list[float], list[float], list[str]]:
        """The same in seconds, value by value."""
        values = _values(self.content)
        if len(values) != 3 * self.size:
            self._fail(f"has {len(values)} values for {self.size} intervals of a start, an end and a label")
        labels = [_unquoted(label) for label in values[2::3] if label[0] == '"']
        if len(labels) != self.size or (values and values[-1].count('"') % 2):
            self._fail("has something else where a label is due, or breaks off inside one")
        try:
            return _seconds(values[0::3], values[1::3], labels)
        except ValueError as error:
            self._fail(f"has something else where a time is due ({str(error)[:80]})")

    def _fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.where}: tier {self.name[:40]!r} {problem}; a size is wrong, or the file is not whole")


def parse_textgrid(data: bytes, where: str) -> list[IntervalTier]:
    """The interval tiers of a TextGrid text file, long or short; point tiers are passed over.

    UTF-8, or UTF-16 with a byte order mark. InputError, beginning with `where`, for anything else that is no whole
    TextGrid; what is wrong inside a tier that is not the last comes out when its intervals are asked for.

    Source: Praat's manual, "TextGrid file formats": only free-standing numbers, quoted texts and flags carry meaning,
    so both formats are one.
    """
    content = _decoded(data, where)
    places = _places(content, '"IntervalTier"')
    head = _HEAD.match(content, 0, places[0]) if places else None
    if not head or head[1] != str(len(places)):
        return _Values(content, where).tiers()
    tiers = []
    for place, end_place in pairwise([*places, len(content)]):
        found = _TIER_HEAD.match(content, place + len('"IntervalTier"'), end_place)
        if not found or len(found[4]) > _DIGITS:
            return _Values(content, where).tiers()
        name, start, end, size = found.groups()
        tiers.append(_tier(_unquoted(name), start, end, int(size), content[found.end() : end_place], where))
    if not _reaches(end, tiers[-1].content):
        _ = tiers[-1].intervals
    return tiers


def _places(content: str, wanted: str) -> list[int]:
    places = [content.find(wanted)]
    while places[-1] >= 0:
        places.append(content.find(wanted, places[-1] + 1))
    return places[:-1]


def _reaches(end: str, content: str) -> bool:
    """Does a tier's content end with an interval up to `end`? One that breaks off does not; nearly all others do."""
    *_, times, _label, rest = ["", "", *content[-_LAST_INTERVAL:].rsplit('"', 3)]
    return not rest.strip() and end in times.split()


def _tier(name: str, start: str, end: str, size: int, content: str, where: str) -> IntervalTier:
    try:
        start_s, end_s = float(start), float(end)
    except ValueError:
        start_s = end_s = nan
    if not (isfinite(start_s) and isfinite(end_s) and start_s <= end_s):
        raise InputError(f"{where}: tier {name[:40]!r} goes from {start[:40]} to {end[:40]} s")
    return IntervalTier(name, start_s, end_s, size, content, where)


def _values(content: str) -> list[str]:
    values = _VALUE.findall(content)
    while values and not values[-1]:  # matches of the end
        values.pop()
    return values


def _seconds(starts: list[str], ends: list[str], labels: list[str]) -> tuple[list[float], list[float], list[str]]:
    starts_s = list(map(float, starts))
    if ends[:-1] == starts[1:]:  # without gaps, as Praat and MFA write them
        return starts_s, [*starts_s[1:], *map(float, ends[-1:])], labels
    return starts_s, list(map(float, ends)), labels


def _unquoted(value: str) -> str:
    return value[1:-1].replace('""', '"')


class _Values:
    """The values of a whole file, read front to back: for files in which tiers cannot be told by their looks."""

    def __init__(self, content: str, where: str):
        self.where = where
        if content.startswith("ooBinaryFile"):
            self.fail(_BINARY)
        if content.startswith('"Praat chronological TextGrid text file"'):
            self.fail("is a chronological TextGrid; save it as text in Praat (Save as text file)")
        self.values = _values(content)
        self.place = 0
        if self.values and self.values[-1].count('"') % 2:
            self.fail("breaks off inside a quoted text; copy or write the file again")

    def tiers(self) -> list[IntervalTier]:
        if self.text("the file type") not in ("ooTextFile", "ooTextFile short"):
            self.fail("is no Praat text file; expected a TextGrid saved as text")
        if (kind := self.text("the object class")) != "TextGrid":
            self.fail(f"holds a Praat object of class {kind[:40]!r}; expected a TextGrid")
        for what in ("the start of the TextGrid", "the end of the TextGrid"):
            self.value(what)
        if self.value("the flag <exists>") != "<exists>":
            self.fail("holds no tiers")
        tiers = [self.tier(number) for number in range(1, self.size("the number of tiers", 5) + 1)]
        if self.place < len(self.values):
            self.fail(f"holds {len(self.values) - self.place} values after its last tier; a size in it is too small")
        return [tier for tier in tiers if tier]

    def tier(self, number: int) -> IntervalTier | None:
        kind = self.text(f"the class of tier {number}")
        if kind not in ("IntervalTier", "TextTier"):
            self.fail(f"tier {number} is of class {kind[:40]!r}; expected IntervalTier or TextTier")
        name = self.text(f"the name of tier {number}")
        start, end = self.value(f"the start of tier {number}"), self.value(f"the end of tier {number}")
        values_each = 3 if kind == "IntervalTier" else 2
        size = self.size(f"the size of tier {number}", values_each)
        first, self.place = self.place, self.place + values_each * size
        tier = _tier(name, start, end, size, "\n".join(self.values[first : self.place]), self.where)
        return tier if kind == "IntervalTier" else None

    def value(self, what: str) -> str:
        if self.place == len(self.values):
            self.fail(f"breaks off where {what} is due")
        self.place += 1
        return self.values[self.place - 1]

    def text(self, what: str) -> str:
        value = self.value(what)
        if value[0] != '"':
            self.fail(f"has {value[:40]} where {what} is due; a size in it is wrong, or it is no TextGrid")
        return _unquoted(value)

    def size(self, what: str, values_each: int) -> int:
        value, left = self.value(what), len(self.values) - self.place
        if not value.isdecimal():
            self.fail(f"has {value[:40]} where {what} is due")
        if len(value) > _DIGITS or int(value) * values_each > left:
            self.fail(f"breaks off: {what} is {value[:40]}, but only {left} values follow")
        return int(value)

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.where}: {problem}")


def _decoded(data: bytes, where: str) -> str:
    try:
        if data[:2] in _UTF16_MARKS:
            return data.decode("utf-16")
        return (data[3:] if data.startswith(codecs.BOM_UTF8) else data).decode()
    except UnicodeDecodeError as error:
        if data.startswith(b"ooBinaryFile"):
            raise InputError(f"{where}: {_BINARY}") from None
        raise InputError(f"{where}: not {error.encoding} at byte {error.start}; save it as UTF-8") from None


def word_intervals(
    tiers: Sequence[IntervalTier],
    speaker_id: str | None,
    where: str,
    *,
    spoken: Container[str] = (),
    span_s: tuple[float, float] = (-inf, inf),
) -> list[WordInterval]:
    """The words of one speaker whose middle lies in `span_s`, silence left out; times as the tier has them.

    The words are in the tier `words`, or in `{speaker} - words`: the speaker's, or the only one. InputError, listing
    the tiers, where that leaves none or several. Words that the aligner did not know become UNKNOWN. They, words whose
    phones are `spn`, and the neighbours of both are not trusted: such a word can take seconds from those beside it.
    `spoken`: the transcript's words, among which `sp` or `silence` is a word and no silence.
    """
    owner, tier = words_tier(tiers, speaker_id, where)
    words: list[WordInterval] = []
    doubtful: list[int] = []  # places in words
    for start_s, end_s, label in _near(tier.intervals, span_s):
        spelling = label.strip()
        if not spelling:
            continue
        if (known := spelling.lower()) in _SILENCE and known not in spoken:
            continue
        if known in _UNKNOWN and known not in spoken:
            doubtful.append(len(words))
            spelling = UNKNOWN
        words.append(WordInterval(spelling, start_s, end_s))
    starts_s = [word.start_s for word in words]
    for phones in tiers:
        # Looking for the letters first spares reading the phones of nearly all files.
        if _owner(phones.name, _PHONES_TIER) == owner and ("spn" in phones.content or "SPN" in phones.content):
            for start_s, end_s, label in _near(phones.intervals, span_s):
                if label.strip().lower() in _NO_PRONUNCIATION:
                    doubtful.append(bisect_right(starts_s, (start_s + end_s) / 2) - 1)
    for doubted in doubtful:
        for place in range(max(0, doubted - 1), min(doubted + 2, len(words))):
            words[place] = replace(words[place], trusted=False)
    return [word for word in words if span_s[0] <= (word.start_s + word.end_s) / 2 < span_s[1]]


def _near(
    intervals: Sequence[tuple[float, float, str]], span_s: tuple[float, float]
) -> Sequence[tuple[float, float, str]]:
    """The intervals in `span_s` and a few on each side; so many segments of a long recording cost what they hold."""
    first = bisect_left(intervals, span_s[0], key=itemgetter(0))
    return intervals[max(0, first - 4) : bisect_left(intervals, span_s[1], key=itemgetter(0)) + 4]


def words_tier(tiers: Sequence[IntervalTier], speaker_id: str | None, where: str) -> tuple[str, IntervalTier]:
    """The tier that holds the speaker's words, and the owner its name states, or "". InputError as word_intervals."""
    found = [(owner, tier) for tier in tiers if (owner := _owner(tier.name, _WORDS_TIER)) is not None]
    own = [(owner, tier) for owner, tier in found if owner == speaker_id]
    unnamed = [(owner, tier) for owner, tier in found if not owner]
    for candidates in (own, unnamed, found):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            break
    wanted = "words" if speaker_id is None else f"words or '{speaker_id} - words'"
    names = ", ".join(repr(tier.name[:40]) for tier in tiers[:20]) or "none"
    raise InputError(f"{where}: expected one tier named {wanted}; the interval tiers are: {names}")


def _owner(name: str, kinds: tuple[str, ...]) -> str | None:
    owner, _, kind = name.rpartition(" - ")
    return owner.strip() if kind.strip().lower() in kinds else None
