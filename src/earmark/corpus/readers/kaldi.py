"""Kaldi's data folders: `wav.scp` and `text`, where present `segments` and `utt2spk`.

Format: https://kaldi-asr.org/doc/data_prep.html. A command in wav.scp is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earmark.corpus.disk_table import DiskTables
from earmark.corpus.lines import id_and_rest, numbered_lines
from earmark.corpus.records import BadEntry, Entry, EntryError, duration_between
from earmark.errors import InputError

_ARCHIVE_PLACE = re.compile(r":[0-9]+(\[[^\]]*\])?$")  # foo.ark:1234, with a range of rows or without
_COLUMNS = {  # file -> its columns after the id
    "wav.scp": ("value",),
    "text": ("words",),
    "segments": ("recording", "start", "stop", "channel"),
    "utt2spk": ("speaker",),
}
_TABLES = {"wav.scp": "wav", "text": "text", "segments": "segments", "utt2spk": "speakers"}


def read(folder: Path) -> Iterator[Entry | BadEntry]:
    """Entries of a data folder, in the order of `text`, then what one file has and the others lack.

    An utterance without audio or text, a recording in which no utterance lies, and audio that is a command, a pipe or
    a place in an archive are each a BadEntry. InputError without wav.scp or text.
    """
    for required in ("wav.scp", "text"):
        if not (folder / required).is_file():
            raise InputError(
                f"{folder / required}: there is no such file; set corpus.manifest to a Kaldi data folder, which holds "
                "wav.scp and text"
            )
    present = [name for name in _COLUMNS if (folder / name).is_file()]
    with DiskTables() as tables:
        for name in _COLUMNS:
            rows = _rows(folder / name) if name in present else ()
            yield from tables.fill(_TABLES[name], folder / name, _COLUMNS[name], rows)
        if "segments" in present:
            yield from _segments(folder, tables)
        else:
            yield from _whole_recordings(folder, tables)


def _whole_recordings(folder: Path, tables: DiskTables) -> Iterator[Entry | BadEntry]:
    text = folder / "text"
    for utterance, line, words, value, speaker in tables.rows(
        "SELECT text.id, text.line, words, value, speaker FROM text"
        " LEFT JOIN wav ON wav.id = text.id LEFT JOIN speakers ON speakers.id = text.id ORDER BY text.rowid"
    ):
        source = f"{text}:{line}"
        try:
            yield Entry(source, utterance, _audio(value, "the utterance"), words, utterance, speaker)
        except EntryError as error:
            yield error.at(source, utterance)
    yield from _left_over(folder, tables, "wav.scp", ("text", "id"), "text has no such utterance")


def _segments(folder: Path, tables: DiskTables) -> Iterator[Entry | BadEntry]:
    text, segments = folder / "text", folder / "segments"
    for utterance, text_line, words, line, recording, start, stop, channel, value, speaker in tables.rows(
        "SELECT text.id, text.line, words, segments.line, recording, start, stop, channel, value, speaker FROM text"
        " LEFT JOIN segments ON segments.id = text.id LEFT JOIN wav ON wav.id = recording"
        " LEFT JOIN speakers ON speakers.id = text.id ORDER BY text.rowid"
    ):
        text_source = f"{text}:{text_line}"
        if recording is None:
            yield BadEntry(utterance, "missing_audio", f"{text_source}: segments has no such utterance")
            continue
        try:
            yield Entry(
                text_source,
                segment_id=utterance,
                audio=_audio(value, f"recording {recording!r}"),
                text=words,
                recording_id=recording,
                speaker_id=speaker,
                offset_s=start,
                # -1 is "to the end" by extract-segments' convention.
                duration_s=None if stop in ("-1", "-1.0") else duration_between(start, stop),
                channel=channel,
            )
        except EntryError as error:
            yield error.at(f"{segments}:{line}", utterance)
    yield from _left_over(folder, tables, "segments", ("text", "id"), "text has no such utterance")
    yield from _left_over(
        folder, tables, "wav.scp", ("segments", "recording"), "no line of segments lies in this recording"
    )


def _left_over(folder: Path, tables: DiskTables, name: str, wanted_by: tuple[str, str], why: str) -> Iterator[BadEntry]:
    table = _TABLES[name]
    other, column = wanted_by
    query = f"SELECT id, line FROM {table} WHERE id NOT IN (SELECT {column} FROM {other}) ORDER BY {table}.rowid"  # noqa: S608
    for identifier, line in tables.rows(query):
        yield BadEntry(identifier, "no_text", f"{folder / name}:{line}: {why}")


def _rows(path: Path) -> Iterator[tuple[Any, ...] | BadEntry]:
    for number, line in numbered_lines(path):
        try:
            identifier, rest = id_and_rest(line)
            yield identifier, number, *_cells(path.name, rest)
        except EntryError as error:
            yield error.at(f"{path}:{number}")


def _cells(name: str, rest: str) -> tuple[str | None, ...]:
    """The columns after the id on a line of the file `name`. EntryError broken_line where there are too few or many."""
    if name == "text":
        return (rest,)
    if name == "wav.scp" and rest:
        return (rest,)
    cells = rest.split()
    if name == "utt2spk" and len(cells) == 1:
        return (cells[0],)
    if name == "segments" and len(cells) in (3, 4):
        return (*cells, None)[:4]
    expected = {
        "wav.scp": "id and path",
        "utt2spk": "id and speaker",
        "segments": "id, recording, start, end[, channel]",
    }
    raise EntryError("broken_line", f"{len(cells) + 1} columns; expected {expected[name]}")


def _audio(value: str | None, what: str) -> str:
    if value is None:
        raise EntryError("missing_audio", f"wav.scp has no line for {what}")
    if value.startswith("|") or value.endswith("|"):
        raise EntryError(
            "command_pipe", f"wav.scp has a command, which is not run: {value[:80]!r}; write the files first"
        )
    if value == "-" or _ARCHIVE_PLACE.search(value):
        raise EntryError("not_a_file", f"wav.scp has {value[:80]!r}, which is no audio file of its own; write one")
    return value
