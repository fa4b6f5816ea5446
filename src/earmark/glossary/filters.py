"""Surfaces that make no useful glossary term, whoever listed them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Closed-class words of English, and the few verbs and adverbs that fill speech.
_STOP_WORDS = """
    a about above after again against ago all almost also although always am among an and another any anybody anyone
    anything are around as at away back be because been before behind being below between both but by can cannot could
    did do does doing done down during each either else enough even ever every everybody everyone everything few for
    from get gets getting go goes going gone got had has have having he hello her here hers herself hi him himself his
    how however i if in indeed instead into is it its itself just know let like likely made make many may maybe me mean
    might mine more most much must my myself neither never next no nobody none nor not nothing now of off often oh ok
    okay on once one only onto or other others our ours ourselves out over own perhaps please quite rather really right
    said same say see seem she should since so some somebody someone something soon still such than thank thanks that
    the their theirs them themselves then there therefore these they thing things think this those though through thus
    to together too toward towards um under until up upon us very was we well went were what whatever when where whether
    which while who whole whom whose why will with within without would yeah yes yet you your yours yourself yourselves
    isn't aren't wasn't weren't don't doesn't didn't won't wouldn't can't couldn't shouldn't haven't hasn't hadn't i'm
    i've i'll i'd you're you've you'll you'd he's she's it's we're we've we'll they're they've they'll that's there's
    what's let's
"""
_NUMBER_AND_TIME_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million
    millions billion billions trillion dozen dozens half halves quarter quarters third thirds first second seconds
    fourth fifth sixth seventh eighth ninth tenth twice percent past last monday tuesday wednesday thursday friday
    saturday sunday january february march april may june july august september october november december today
    tomorrow yesterday tonight morning afternoon evening night noon midnight minute minutes hour hours day days week
    weeks weekend month months year years decade decades century centuries o'clock am pm
    零 〇 一 二 两 三 四 五 六 七 八 九 十 百 千 万 亿 第 年 月 日 号 时 点 分 秒 天 周 今 明 昨
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
NUMBER_AND_TIME_WORDS = frozenset(_NUMBER_AND_TIME_WORDS.split())


@dataclass(frozen=True)
class TermFilters:
    """Which surfaces are dropped; each setting is explained in config.yaml, glossary.filters."""

    min_characters: int = 3
    max_digits: float = 0.5
    stop_words: bool = True
    numbers_and_times: bool = True
    prefixes: Sequence[str] = ()  # normalised
    suffixes: Sequence[str] = ()

    def problem(self, surface: str) -> tuple[str, str] | None:
        """(kind, why) the normalised `surface` is dropped, or None."""
        return next(self._problems(surface), None)

    def _problems(self, surface: str) -> Iterator[tuple[str, str]]:
        words = surface.split()
        characters = "".join(words)
        # A character of Chinese or Japanese (of full width) says about as much as two letters.
        length = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in characters)
        if length < self.min_characters:
            yield "too_short", f"under {self.min_characters} characters"
        if sum(map(str.isdigit, characters)) > self.max_digits * len(characters):
            yield "mostly_digits", f"more than {self.max_digits:.0%} of it are digits"
        if STOP_WORDS.issuperset(words):
            if self.stop_words:
                yield "stop_words", "nothing but stop words"
        elif self.numbers_and_times and (STOP_WORDS | NUMBER_AND_TIME_WORDS).issuperset(words):
            yield "numbers_and_times", "nothing but numbers and times"
        padded = f" {surface} "
        if prefix := next((p for p in self.prefixes if padded.startswith(f" {p} ")), None):
            yield "listed_prefix", f"begins with {prefix!r}"
        if suffix := next((s for s in self.suffixes if padded.endswith(f" {s} ")), None):
            yield "listed_suffix", f"ends with {suffix!r}"
