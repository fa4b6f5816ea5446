"""Manifests of one segment a line: TSV with a header, and JSON lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from earmark.corpus.lines import decoded, json_object, numbered_lines, scalar_text
from earmark.corpus.records import BadEntry, Entry, EntryError
from earmark.errors import InputError

# Our column name -> the spellings accepted in a manifest, first match wins. corpus.columns comes before them.
COLUMNS = {
    "segment_id": ("segment_id", "id", "key"),
    "audio": ("audio", "wav", "audio_path"),
    "text": ("text", "txt"),
    "recording_id": ("recording_id",),
    "speaker_id": ("speaker", "speaker_id"),
    "offset_s": ("offset_s",),
    "duration_s": ("duration_s",),
    "language": ("language",),
    "split": ("split",),
    "channel": ("channel",),
}
REQUIRED = ("segment_id", "audio", "text")


def read_tsv(manifest: Path, *, columns: Mapping[str, str]) -> Iterator[Entry | BadEntry]:
    """Entries of a tab-separated file whose first line names the columns. InputError if a required one is missing."""
    for row in tsv_rows(manifest, accepted_spellings(columns), REQUIRED):
        if isinstance(row, BadEntry):
            yield row
        else:
            source, cells = row
            fields: dict[str, Any] = cells
            yield Entry(source, **fields)


def tsv_rows(
    manifest: Path, spellings_of: Mapping[str, Sequence[str]], required: Collection[str]
) -> Iterator[tuple[str, dict[str, str]] | BadEntry]:
    """(`file:line`, column -> cell) of every line below the header, for the columns that `spellings_of` names.

    Of several spellings in the header the first in `spellings_of` counts. InputError for a header that cannot be read,
    lacks a `required` column, or names one twice.
    """
    lines = numbered_lines(manifest)
    try:
        header = decoded(next(lines)[1]).split("\t")
    except StopIteration:
        raise InputError(f"{manifest}: the manifest is empty; expected a header line and one segment a line") from None
    except EntryError as error:
        raise InputError(f"{manifest}:1: {error.detail}; save the manifest as UTF-8") from None
    found = {
        name: next((spelling for spelling in spellings if spelling in header), None)
        for name, spellings in spellings_of.items()
    }
    if missing := [" or ".join(spellings_of[name]) for name in required if found[name] is None]:
        raise InputError(
            f"{manifest}:1: the header lacks the column {', '.join(missing)}; it has: {', '.join(header)[:400]}"
        )
    if twice := [spelling for spelling in found.values() if spelling and header.count(spelling) > 1]:
        raise InputError(f"{manifest}:1: the header names the column {twice[0]} twice; take one out")
    positions = [(name, header.index(spelling)) for name, spelling in found.items() if spelling is not None]
    for number, line in lines:
        source = f"{manifest}:{number}"
        try:
            cells = decoded(line).split("\t")
            if len(cells) != len(header):
                raise EntryError("broken_line", f"{len(cells)} columns where the header has {len(header)}")
        except EntryError as error:
            yield error.at(source)
            continue
        yield source, {name: cells[position] for name, position in positions}


def read_jsonl(manifest: Path, *, columns: Mapping[str, str]) -> Iterator[Entry | BadEntry]:
    """Entries of a file of one JSON object a line."""
    spellings_of = accepted_spellings(columns)
    for number, line in numbered_lines(manifest):
        source = f"{manifest}:{number}"
        fields: dict[str, Any] = {}
        try:
            row = json_object(decoded(line))
            for name, spellings in spellings_of.items():
                for spelling in spellings:
                    if row.get(spelling) is not None:
                        fields[name] = scalar_text(spelling, row[spelling])
                        break
            if missing := [name for name in REQUIRED if name not in fields]:
                raise EntryError("broken_line", f"no {' or '.join(spellings_of[missing[0]])}")
        except EntryError as error:
            yield error.at(source, fields.get("segment_id", ""))
            continue
        yield Entry(source, **fields)


def accepted_spellings(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """COLUMNS, where a name that `columns` maps has that one spelling alone. InputError for a name we do not know."""
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise InputError(f"corpus.columns: there is no column {unknown[0]!r} to name; there are {', '.join(COLUMNS)}")
    return COLUMNS | {name: (spelling,) for name, spelling in columns.items()}
