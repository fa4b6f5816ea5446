"""Text as every stage compares it: transcript words and glossary surfaces pass through the same function."""

from __future__ import annotations

import re
import unicodedata

# What stands for an apostrophe in print, in transliterations (of Hawaiian, Arabic) and on keyboards: quotation marks,
# primes, accents that stand alone, and the letters of Armenian, Hebrew and other scripts that look the same.
_APOSTROPHES = str.maketrans(
    dict.fromkeys(
        "`\u00b4\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u055a\u05f3\u1fbd\u1fbf\u2018\u2019\u201b\u2032\u2035\ua78b\ua78c\uff07",
        "'",
    )
)
# NFKC would make letters of trade marks; soft hyphens only say where a line may break.
_BEFORE_FOLDING = _APOSTROPHES | {0x2122: " ", 0x2120: " ", 0xAD: None}
# Variation selectors choose a glyph and change no word.
_COMPOSED = _APOSTROPHES | dict.fromkeys([*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
# Thousands are set apart by commas, by blanks that do not break a line (French, SI) or by apostrophes (Swiss). A full
# stop does it too in many languages, and in others it begins the decimals: it separates words, like any other mark.
_COMMAS = re.compile(r"(?<!\d)[1-9]\d{0,2}(?:,\d{3})+(?!\d)")
_FIXED_BLANKS = re.compile(r"(?<!\d)\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)")
_GROUPED = re.compile(r"\d{1,3}(?:'\d{3})+")
_NOT_LETTER = re.compile(r"[^\w\s']|_")
_NO_LETTER_AHEAD = re.compile(r"^\W+")
# Han, Hiragana and Katakana with their iteration and prolonged sound marks.
_CHARACTERS = (
    "[\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U000323af]"
)
_MARKS = "[\u302a-\u302f\u3099\u309a]"  # set upon one of them
_CHARACTER = re.compile(f"{_CHARACTERS}{_MARKS}*")
_BETWEEN_CHARACTERS = re.compile(f"(?:(?<={_CHARACTERS})|(?<={_MARKS})) (?={_CHARACTERS})")
_ID = re.compile(r"\w[\w.@+=-]*")
ID_MAX_BYTES = 200  # a file name holds 255, and chunk ids and suffixes come on top


def words(text: str) -> list[str]:
    r"""Split `text` into normalised words.

    Compatibility forms are folded (NFKC), case is folded, apostrophes are unified and kept inside a word only, every
    other mark (hyphens too, and the full-width marks of Chinese) separates words. Accents and vowel signs belong to the
    letter they follow. The digits of a number stay together: `1,000`, `1'000` and `1\u202f000` are `1000`.

    Chinese and Japanese do not separate words, so each of their characters is a word here: Han, Hiragana and Katakana,
    the prolonged sound mark and iteration marks too. Runs of other letters and digits beside them stay whole:
    `iPhone手机2` is `iphone 手 机 2`.
    """
    if text.isascii():  # nothing to fold but case
        return _split(text.replace("`", "'").lower())
    text = _FIXED_BLANKS.sub(_digits, text)
    folded = unicodedata.normalize("NFKC", text.translate(_BEFORE_FOLDING)).casefold()
    composed = unicodedata.normalize("NFKC", folded).translate(_COMPOSED)
    return _split(composed)


def _split(folded: str) -> list[str]:
    spaced = _NOT_LETTER.sub(_separator, _COMMAS.sub(_digits, folded) if "," in folded else folded)
    if not spaced.isascii():
        spaced = _CHARACTER.sub(r" \g<0> ", spaced)
    found = [word for part in spaced.split() if (word := _NO_LETTER_AHEAD.sub("", part).rstrip("'"))]
    if "'" in spaced:
        return [word.replace("'", "") if _GROUPED.fullmatch(word) else word for word in found]
    return found


def _digits(number: re.Match[str]) -> str:
    return "".join(filter(str.isdigit, number[0]))


def _separator(match: re.Match[str]) -> str:
    return match[0] if unicodedata.category(match[0]) in ("Mn", "Mc") else " "


def normalise(text: str) -> str:
    """`words(text)` joined by single spaces: the key under which a surface is known."""
    return " ".join(words(text))


def readable(normalised: str) -> str:
    """Normalised words as they are written: no blank between two characters of Chinese or Japanese."""
    return normalised if normalised.isascii() else _BETWEEN_CHARACTERS.sub("", normalised)


def is_unicode(text: str) -> bool:
    """False where half of a surrogate pair stands: a byte that was not UTF-8, or half of a JSON escape."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def id_problem(identifier: str) -> str | None:
    """Why `identifier` may not be used as an id, or None if it may.

    Ids become parts of file names and of other programs' input, so they hold letters, digits and `. _ @ + = -` only,
    begin with a letter, a digit or `_`, and cannot climb out of a folder.
    """
    if not identifier:
        return "is empty"
    if len(identifier.encode("utf-8", "surrogatepass")) > ID_MAX_BYTES:
        return f"is longer than {ID_MAX_BYTES} bytes"
    if not _ID.fullmatch(identifier):
        return "holds a character other than letters, digits and . _ @ + = - (or begins with one of the latter)"
    return None
