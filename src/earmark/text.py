"""Text as every stage compares it: transcript words and glossary surfaces pass through the same function."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07\u00b4`", "'"))
_VARIATION_SELECTORS = dict.fromkeys(range(0xFE00, 0xFE10))  # they choose a glyph and change no word
_NOT_LETTER = re.compile(r"[^\w\s']|_")
_EDGES = re.compile(r"^\W+|'+$")
_ID = re.compile(r"\w[\w.@+=-]*")
ID_MAX_BYTES = 200  # a file name holds 255, and chunk ids and suffixes come on top


def words(text: str) -> list[str]:
    """Split `text` into normalised words.

    Compatibility forms are folded (NFKC), case is folded, apostrophes are unified and kept inside a word only, every
    other mark (hyphens too) separates words. Accents and vowel signs belong to the letter they follow.
    """
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    composed = unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES | _VARIATION_SELECTORS)
    return [word for part in _NOT_LETTER.sub(_separator, composed).split() if (word := _EDGES.sub("", part))]


def _separator(match: re.Match[str]) -> str:
    return match[0] if unicodedata.category(match[0]) in ("Mn", "Mc") else " "


def normalise(text: str) -> str:
    """`words(text)` joined by single spaces: the key under which a surface is known."""
    return " ".join(words(text))


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
