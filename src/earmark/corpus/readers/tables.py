"""Manifests of one segment a line: TSV with a header, and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    lines = numbered_lines(manifest)
    try:
        header = decoded(next(lines)[1]).split("\t")
    except StopIteration:
        raise InputError(f"{manifest}: the manifest is empty; expected a header line and one segment a line") from None
    except EntryError as error:
        raise InputError(f"{manifest}:1: {error.detail}; save the manifest as UTF-8") from None
    positions = {
        name: header.index(spelling)
        for name, spellings in accepted_spellings(columns).items()
        for spelling in spellings[::-1]
        if spelling in header
    }
    missing = [" or ".join(accepted_spellings(columns)[name]) for name in REQUIRED if name not in positions]
    if missing:
        raise InputError(f"{manifest}:1: the header lacks the column {', '.join(missing)}; it has: {', '.join(header)}")
    for number, line in lines:
        source = f"{manifest}:{number}"
        try:
            cells = decoded(line).split("\t")
            if len(cells) != len(header):
                raise EntryError("broken_line", f"{len(cells)} columns where the header has {len(header)}")
        except EntryError as error:
            yield error.at(source)
            continue
        fields: dict[str, Any] = {name: cells[position] for name, position in positions.items()}
        yield Entry(source, **fields)


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
