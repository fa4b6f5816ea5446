"""Text files line by line: a reader never holds more than one line, and never stops at a bad one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earmark.corpus.records import EntryError
from earmark.errors import InputError
from earmark.files import opened
from earmark.text import is_unicode

_BLANKS = re.compile(r"[ \t]+")
LONGEST_LINE_BYTES = 2**24  # a longer one is another kind of file, and would be held in memory as a whole


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that is not blank.

    InputError as `opened`, and for a line of more than LONGEST_LINE_BYTES.
    """
    with opened(path) as file:
        lines = iter(lambda: file.readline(LONGEST_LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > LONGEST_LINE_BYTES:
                raise InputError(
                    f"{path}:{number}: the line is longer than {LONGEST_LINE_BYTES >> 20} MiB, so this is no file of "
                    "one entry a line; set corpus.format to what it is"
                )
            if line.strip():
                yield number, line


def decoded(line: bytes) -> str:
    """The line as text, without its end. EntryError not_utf8."""
    try:
        return line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise EntryError("not_utf8", f"byte {error.start} of the line is not UTF-8") from None


def id_and_rest(line: bytes) -> tuple[str, str]:
    """The first word of a line, and what follows the blanks or tabs behind it or "". EntryError not_utf8."""
    identifier, *rest = _BLANKS.split(decoded(line).strip(" \t"), maxsplit=1)
    return identifier, rest[0] if rest else ""


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line holds. EntryError broken_line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise EntryError("broken_line", f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise EntryError("broken_line", "not a JSON object")
    return row


def scalar_text(name: str, value: Any) -> str:
    """`value` of a JSON object as text. EntryError broken_line or not_utf8 where it is neither text nor a number."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise EntryError("broken_line", f"{name} is a {type(value).__name__}; expected text or a number")
    if isinstance(value, str) and not is_unicode(value):
        raise EntryError("not_utf8", f"{name} holds bytes that are not UTF-8, or half of a surrogate pair")
    return str(value)
