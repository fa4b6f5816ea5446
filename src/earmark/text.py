"""Text as every stage compares it: transcript words and glossary surfaces pass through the same function."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'", "`": "'"})
_NOT_WORD = re.compile(r"[^\w']+|_")
_ID = re.compile(r"\w[\w.@+=-]*")
ID_MAX_LENGTH = 200


def words(text: str) -> list[str]:
    """Split `text` into normalised words.

    Compatibility forms are folded (NFKC), case is folded, apostrophes are unified and kept inside a word only, every
    other mark (hyphens too) separates words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return [word for part in _NOT_WORD.split(folded) if (word := part.strip("'"))]


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
    if len(identifier) > ID_MAX_LENGTH:
        return f"is longer than {ID_MAX_LENGTH} characters"
    if not _ID.fullmatch(identifier):
        return "holds a character other than letters, digits and . _ @ + = - (or begins with one of the latter)"
    return None
