"""Glossary files as users have them, read into plain entries."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.errors import InputError
from earmark.files import read_json, read_text

TERM_COLUMNS = ("phrase", "term", "main_term")  # the first that a table has names the term
ALIAS_COLUMNS = ("alias", "alt")


@dataclass(frozen=True)
class TermEntry:
    """One term as a file states it: `phrase` is its key, `fields` what else is said of it (term, aliases, ...)."""

    phrase: str
    fields: dict[str, Any]
    source: str  # file, or file:line


@dataclass(frozen=True)
class AliasEntry:
    """`alias` is another surface of `phrase`."""

    alias: str
    phrase: str
    source: str


def read_terms(path: Path) -> Iterator[TermEntry]:
    """Terms of a `.json` file ({phrase: {term, short_description, ...}}), a `.tsv` or `.csv` table with a header
    (phrase or term, and any other columns; `aliases` separated by `|`), or a plain list, one term a line.

    A JSON key that occurs twice comes twice. InputError if the file cannot be read or an entry has the wrong form.
    """
    if path.suffix == ".json":
        for phrase, fields in _json_items(path):
            if not isinstance(fields, dict):
                raise InputError(
                    f"{path}: the entry {phrase[:80]!r} holds a {type(fields).__name__}; expected phrase to "
                    "{term, short_description, ...}"
                )
            yield _checked(TermEntry(phrase, fields, str(path)))
    elif path.suffix in (".tsv", ".csv"):
        for source, row in _table_rows(path):
            name = next((column for column in TERM_COLUMNS if column in row), None)
            if name is None:
                raise InputError(
                    f"{path}: the header lacks a column {' or '.join(TERM_COLUMNS)}; it has: {', '.join(row)}"
                )
            stated: dict[str, Any] = {key: value for key, value in row.items() if value and key != name}
            if "aliases" in stated:
                stated["aliases"] = [alias for alias in stated["aliases"].split("|") if alias.strip()]
            yield _checked(TermEntry(row[name], stated, source))
    else:
        for source, line in _lines(path):
            yield TermEntry(line, {}, source)


def read_aliases(path: Path) -> Iterator[AliasEntry]:
    """Aliases of a `.json` file ({alias: phrase}), or a `.tsv` or `.csv` table with the columns alias and phrase."""
    if path.suffix == ".json":
        for alias, phrase in _json_items(path):
            if not isinstance(phrase, str):
                raise InputError(
                    f"{path}: the entry {alias[:80]!r} holds a {type(phrase).__name__}; expected alias to phrase"
                )
            yield AliasEntry(alias, phrase, str(path))
    elif path.suffix in (".tsv", ".csv"):
        for source, row in _table_rows(path):
            alias_column = next((column for column in ALIAS_COLUMNS if column in row), None)
            phrase_column = next((column for column in TERM_COLUMNS if column in row), None)
            if alias_column is None or phrase_column is None:
                raise InputError(
                    f"{path}: expected a column {' or '.join(ALIAS_COLUMNS)} and one of {', '.join(TERM_COLUMNS)}; "
                    f"the header has: {', '.join(row)}"
                )
            yield AliasEntry(row[alias_column], row[phrase_column], source)
    else:
        raise InputError(f"{path}: aliases are read from .json, .tsv and .csv files; rename or convert it")


def read_list(path: Path) -> Iterator[str]:
    """The lines of a plain list that are not blank."""
    for _, line in _lines(path):
        yield line


def _checked(entry: TermEntry) -> TermEntry:
    shown = entry.fields.get("term", entry.phrase)
    if not isinstance(shown, str) or ("term" in entry.fields and not shown.strip()):
        raise InputError(
            f"{entry.source}: the term of {entry.phrase[:80]!r} is {shown!r}; expected the text to show for it"
        )
    listed = entry.fields.get("aliases", [])
    if not isinstance(listed, list) or not all(isinstance(alias, str) for alias in listed):
        raise InputError(
            f"{entry.source}: the aliases of {entry.phrase[:80]!r} are {listed!r:.80}; expected a list of texts"
        )
    return entry


def _json_items(path: Path) -> list[tuple[str, Any]]:
    """The members of the file's one object, repeated keys too."""
    found = read_json(path, _Pairs)
    if not isinstance(found, _Pairs):
        raise InputError(f"{path}: expected a JSON object; found a {type(found).__name__}")
    try:
        return [(key, _plain(value)) for key, value in found]
    except RecursionError:
        raise InputError(f"{path}: lists or objects are nested too deeply to be a glossary; mend it") from None


class _Pairs(list):
    """A JSON object as (key, value) pairs."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(member) for key, member in value}
    return [_plain(member) for member in value] if isinstance(value, list) else value


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    text = io.StringIO(read_text(path), newline="")
    # In a TSV a quotation mark is a character like any other: one left open must not swallow the lines below.
    reader = (
        csv.reader(text, "excel-tab", quoting=csv.QUOTE_NONE)
        if path.suffix == ".tsv"
        else csv.reader(text, strict=True)
    )
    try:
        header = next(reader, [])
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            source = f"{path}:{reader.line_num}"
            if any("\n" in cell for cell in cells):
                raise InputError(f"{source}: a quotation mark opens above and closes only here; mend these lines")
            if len(cells) != len(header):
                raise InputError(f"{source}: {len(cells)} columns where the header has {len(header)}; mend this line")
            yield source, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a table ({error}); mend this line") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    # Not splitlines, which would also part a term at the separators of pages and paragraphs.
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if line := line.strip():
            yield f"{path}:{number}", line
