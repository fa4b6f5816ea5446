"""A JSON document too large for memory, one item at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from earmark.errors import InputError
from earmark.files import opened

LONGEST_VALUE = 2**26  # characters; it is held in memory as a whole
_CHUNK = 2**20  # characters
_AFTER_NUMBER = tuple(",]} \t\r\n")


def list_items(path: Path, name: str | None = None) -> Iterator[Any]:
    """The items of the JSON list in a file (`.gz` is decompressed), or of its object's list `name`, as they are read.

    There are none if the object has no such list. Bytes that are not UTF-8 become lone surrogates, so that they spoil
    no other item. InputError where the document breaks off, is no JSON, or holds a value longer than LONGEST_VALUE.
    """
    with opened(path) as file:
        document = _Document(path, file)
        yield from document.items() if name is None else document.items_of(name)
        if document.next_character():
            document.refuse("it goes on after its end")


class _Document:
    """A document read up to a place, and held in memory from there to wherever the last chunk ended."""

    def __init__(self, path: Path, file: io.BufferedIOBase):
        self._path = path
        self._file = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")  # type: ignore[type-var]
        self._held = ""
        self._at = 0  # the place, in what is held
        self._dropped = 0  # characters in front of what is held
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """The first character from here that is not blank, "" at the end of the document. It is the place then."""
        while True:
            while self._at < len(self._held):
                if (character := self._held[self._at]) not in " \t\r\n":
                    return character
                self._at += 1
            if self._ended:
                return ""
            self._read_more()

    def expect(self, character: str) -> None:
        if self.next_character() != character:
            self.refuse(f"expected {character}")
        self._at += 1

    def enter(self, opening: str, closing: str) -> bool:
        """Whether anything stands between `opening`, which is here, and `closing`."""
        self.expect(opening)
        if self.next_character() != closing:
            return True
        self._at += 1
        return False

    def goes_on(self, closing: str) -> bool:
        """Whether a comma stands here, and not `closing`."""
        character = self.next_character()
        if character not in (",", closing):
            self.refuse(f"expected , or {closing}")
        self._at += 1
        return character == ","

    def value(self) -> Any:
        """The value that begins here."""
        self.next_character()
        while True:
            problem = "it breaks off"
            try:
                value, end = self._decode(self._held, self._at)
            except json.JSONDecodeError as error:
                problem = f"{error.msg}, or it breaks off"
            except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
                self.refuse(str(error))
            else:
                # A number may go on where the chunk ends, or be read up to its point: "1.5" as 1.
                whole = self._held[end : end + 1] in _AFTER_NUMBER if isinstance(value, int | float) else True
                if (whole and end < len(self._held)) or self._ended:
                    self._at = end
                    return value
            if self._ended:
                self.refuse(problem)
            self._read_more()

    def items(self) -> Iterator[Any]:
        """The items of the list that begins here."""
        more = self.enter("[", "]")
        while more:
            yield self.value()
            more = self.goes_on("]")

    def items_of(self, name: str) -> Iterator[Any]:
        """The items of the lists called `name` in the object that begins here."""
        more = self.enter("{", "}")
        while more:
            key = self.value()
            if not isinstance(key, str):
                self.refuse("expected a name in quotes")
            self.expect(":")
            if key == name and self.next_character() == "[":
                yield from self.items()
            else:
                self.value()
            more = self.goes_on("}")

    def refuse(self, why: str) -> NoReturn:
        raise InputError(
            f"{self._path}: not whole JSON from character {self._dropped + self._at} on ({why}); copy or make it again"
        )

    def _read_more(self) -> None:
        self._held = self._held[self._at :]
        self._dropped += self._at
        self._at = 0
        if len(self._held) > LONGEST_VALUE:
            self.refuse(f"a value breaks off, or is longer than {LONGEST_VALUE >> 20} million characters")
        chunk = self._file.read(max(_CHUNK, len(self._held)))
        self._ended = not chunk
        self._held += chunk
