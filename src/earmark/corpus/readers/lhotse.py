"""Lhotse manifests: recordings and supervisions, one JSON object a line (Zelasko et al. 2021, arXiv:2110.12561)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earmark.corpus.disk_table import DiskTables
from earmark.corpus.lines import decoded, json_object, numbered_lines, scalar_text
from earmark.corpus.records import BadEntry, Entry, EntryError
from earmark.errors import InputError

# As lhotse's recipes name them: librispeech_recordings_train-clean-100.jsonl.gz
_MANIFEST = re.compile(
    r"(?P<before>(?:.*[._-])?)(?P<kind>recordings|supervisions)(?P<after>(?:[._-].*)?)\.jsonl(\.gz)?"
)
_UNREAD = {  # a source's type -> why its audio is not read
    "command": ("command_pipe", "the audio is the output of a command, which is not run; write it to a file"),
    "url": ("remote_audio", "the audio is at a URL; download it"),
    "memory": ("embedded_audio", "the audio is part of the manifest; write it to a file"),
    "shar": ("embedded_audio", "the audio is in a Shar archive; write it to files"),
    "transformed": ("transformed_audio", "lhotse would transform the audio; save it transformed"),
}


def read(manifest: Path) -> Iterator[Entry | BadEntry]:
    """Entries of every pair of recordings and supervisions manifests (.jsonl or .jsonl.gz) in the folder `manifest`.

    A supervision is a segment; the rest of a pair's name (`train-clean-100`) is its split. Only audio in files is
    read: no command of a manifest is ever run. Word alignments and custom fields are ignored, as is a language that is
    neither a code nor a well-known name. InputError if a manifest has no partner, or breaks off.
    """
    for recordings, supervisions, split in _pairs(manifest):
        with DiskTables() as tables:
            yield from tables.fill("recordings", recordings, ("content",), _recordings(recordings))
            for number, line in numbered_lines(supervisions):
                yield _entry(f"{supervisions}:{number}", line, split, tables, recordings)


def _pairs(folder: Path) -> list[tuple[Path, Path, str | None]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; set corpus.manifest to the folder of the lhotse manifests")
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _MANIFEST.fullmatch(path.name):
            pair = found.setdefault((match["before"], match["after"]), {})
            if twin := pair.get(match["kind"]):
                raise InputError(f"{folder}: holds both {twin.name} and {path.name}; remove one of them")
            pair[match["kind"]] = path
    if not found:
        raise InputError(
            f"{folder}: holds no recordings.jsonl.gz and supervisions.jsonl.gz; `lhotse copy` makes them of .json and "
            ".yaml manifests"
        )
    for pair in found.values():
        if len(pair) == 1:
            ((kind, path),) = pair.items()
            other = "recordings" if kind == "supervisions" else "supervisions"
            raise InputError(f"{path}: there is no {other} manifest beside it; add {other}, or move this one elsewhere")
    return [(pair["recordings"], pair["supervisions"], _split_of(after)) for (_, after), pair in found.items()]


def _split_of(rest: str) -> str | None:
    """The part of the corpus that a manifest's name ends in; lhotse's recipes write `all` where there are no parts."""
    part = rest.strip("._-")
    return part if part != "all" and part else None


def _recordings(path: Path) -> Iterator[tuple[str, int, str] | BadEntry]:
    """(id, line, JSON of `_sources`) of every recording."""
    for number, line in numbered_lines(path):
        recording_id = ""
        try:
            row = json_object(decoded(line))
            recording_id = _stated("id", row)
            yield recording_id, number, json.dumps(_sources(row))
        except EntryError as error:
            yield error.at(f"{path}:{number}", recording_id)


def _sources(row: dict[str, Any]) -> list[tuple[str, list[int], str]]:
    """(type, channels, file) of each source of a recording."""
    items = row.get("sources")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise EntryError("broken_line", "sources is not a list of objects")
    sources = []
    for item in items:
        kind = "transformed" if row.get("transforms") else _stated("type", item)
        if kind not in ("file", *_UNREAD):
            raise EntryError("broken_line", f"there is no type of source {kind[:40]!r}")
        sources.append((kind, _channels(item.get("channels")), _stated("source", item) if kind == "file" else ""))
    return sources


def _entry(source: str, line: bytes, split: str | None, tables: DiskTables, recordings: Path) -> Entry | BadEntry:
    segment_id = ""
    try:
        row = json_object(decoded(line))
        segment_id = _stated("id", row)
        recording_id = _stated("recording_id", row)
        found = tables.find("recordings", recording_id)
        if found is None:
            raise EntryError("missing_recording", f"{recordings} has no usable recording {recording_id[:80]!r}")
        try:
            audio, channel = _audio(json.loads(found[2]), _channels(row.get("channel", 0)))
        except EntryError as error:
            raise EntryError(error.reason, f"{error.detail} ({recordings}:{found[1]})") from None
        if row.get("text") is None:
            raise EntryError("no_text", "the supervision has no text")
        return Entry(
            source,
            segment_id=segment_id,
            audio=audio,
            text=_stated("text", row),
            recording_id=recording_id,
            speaker_id=None if row.get("speaker") is None else _stated("speaker", row),
            offset_s=_stated("start", row),
            duration_s=_stated("duration", row),
            language=None if row.get("language") is None else _stated("language", row),
            split=split,
            channel=channel,
        )
    except EntryError as error:
        return error.at(source, segment_id)


def _stated(name: str, row: dict[str, Any]) -> str:
    if row.get(name) is None:
        raise EntryError("broken_line", f"no {name}")
    return scalar_text(name, row[name])


def _audio(sources: list[tuple[str, list[int], str]], wanted: list[int]) -> tuple[str, int | None]:
    """(file, index of the channel in it or None for all) of a recording's channels `wanted`."""
    holding = [source for source in sources if set(wanted) & set(source[1])]
    held = {channel for _, channels, _ in holding for channel in channels}
    if not wanted or not held.issuperset(wanted):
        raise EntryError("bad_channel", f"the recording has no channel {', '.join(map(str, wanted))}")
    kind, channels, file = holding[0]
    if kind != "file":
        raise EntryError(*_UNREAD[kind])
    if held == set(wanted) and len(holding) == 1:
        return file, None
    if len(wanted) > 1:
        raise EntryError("bad_channel", "the segment has several channels that are no file's; split or mix them")
    return file, channels.index(wanted[0])


def _channels(value: Any) -> list[int]:
    channels = value if isinstance(value, list) else [value]
    if not all(type(channel) is int for channel in channels):
        raise EntryError("bad_channel", f"channel {str(value)[:40]!r} is neither a number nor a list of numbers")
    return channels
