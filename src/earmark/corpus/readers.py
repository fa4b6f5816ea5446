"""Reading manifests line by line. A reader never holds more than one line, and never stops at a bad one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath

from earmark import text
from earmark.errors import InputError

# Our column name -> the spellings accepted in a manifest, first match wins.
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
}
REQUIRED = ("segment_id", "audio", "text")


@dataclass(frozen=True)
class Segment:
    """One good manifest line. `source` is `file:line`; `duration_s` None means "to the end of the recording".

    Where the line names no speaker, `speaker_stated` is False and the recording's id stands in for the speaker's.
    """

    segment_id: str
    recording_id: str
    speaker_id: str
    audio_path: str
    offset_s: float
    duration_s: float | None
    text: str
    language: str
    split: str | None
    source: str
    speaker_stated: bool


@dataclass(frozen=True)
class BadLine:
    """One manifest line that is no segment: what to write into the rejected rows."""

    id: str
    reason: str
    detail: str


class _LineError(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def read_manifest(manifest: Path, format: str, audio_root: Path | None, language: str) -> Iterator[Segment | BadLine]:
    """Yield every line of `manifest` as a Segment or a BadLine; blank lines are passed over.

    A repeated segment id is a BadLine from its second occurrence on. InputError if the file is missing or its header
    lacks a required column.
    """
    if not manifest.is_file():
        raise InputError(f"{manifest}: there is no such manifest; set corpus.manifest")
    root = (audio_root or manifest.parent).resolve()
    first_seen: dict[str, int] = {}
    with manifest.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        fields_of = _FORMATS[format](manifest, lines)
        for number, line in lines:
            source = f"{manifest}:{number}"
            fields: dict[str, str] = {}
            try:
                fields = fields_of(_decode(line))
                segment = _segment(fields, root, language, source)
                if segment.segment_id in first_seen:
                    raise _LineError("duplicate_id", f"also on line {first_seen[segment.segment_id]}")
            except _LineError as error:
                yield BadLine(fields.get("segment_id", ""), error.reason, f"{source}: {error.detail}")
                continue
            first_seen[segment.segment_id] = number
            yield segment


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _LineError("not_utf8", f"byte {error.start} of the line is not UTF-8") from None


def _tsv_fields(manifest: Path, lines: Iterator[tuple[int, bytes]]) -> Callable[[str], dict[str, str]]:
    try:
        header = _decode(next(lines)[1]).split("\t")
    except StopIteration:
        raise InputError(f"{manifest}: the manifest is empty; expected a header line and one segment a line") from None
    except _LineError as error:
        raise InputError(f"{manifest}:1: {error.detail}; save the manifest as UTF-8") from None
    positions = {
        name: header.index(spelling)
        for name, spellings in COLUMNS.items()
        for spelling in spellings[::-1]
        if spelling in header
    }
    missing = [" or ".join(COLUMNS[name]) for name in REQUIRED if name not in positions]
    if missing:
        raise InputError(f"{manifest}:1: the header lacks the column {', '.join(missing)}; it has: {', '.join(header)}")

    def fields_of(line: str) -> dict[str, str]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise _LineError("broken_line", f"{len(cells)} columns where the header has {len(header)}")
        return {name: cells[position] for name, position in positions.items()}

    return fields_of


def _jsonl_fields(manifest: Path, lines: Iterator[tuple[int, bytes]]) -> Callable[[str], dict[str, str]]:
    def fields_of(line: str) -> dict[str, str]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise _LineError("broken_line", f"not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise _LineError("broken_line", "not a JSON object")
        fields = {
            name: row[spelling]
            for name, spellings in COLUMNS.items()
            for spelling in spellings[::-1]
            if row.get(spelling) is not None
        }
        for name, value in fields.items():
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise _LineError("broken_line", f"{name} is a {type(value).__name__}; expected text or a number")
            if isinstance(value, str) and not _encodable(value):
                raise _LineError("not_utf8", f"{name} holds half of a surrogate pair (\\ud800 to \\udfff)")
        return {name: str(value) for name, value in fields.items()}

    return fields_of


def _encodable(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


_FORMATS = {"tsv": _tsv_fields, "jsonl": _jsonl_fields}


def _segment(fields: dict[str, str], root: Path, language: str, source: str) -> Segment:
    for name in REQUIRED:
        if name not in fields:
            raise _LineError("broken_line", f"no {' or '.join(COLUMNS[name])}")
    for name in ("segment_id", "recording_id", "speaker_id"):
        value = fields.get(name, "")
        if (value or name in REQUIRED) and (problem := text.id_problem(value)):
            raise _LineError("bad_id", f"{name} {value[:80]!r} {problem}")
    if not fields["audio"] or "\0" in fields["audio"]:
        raise _LineError("missing_audio", "the audio column is empty or holds a NUL")
    if not (spoken := text.normalise(fields["text"])):
        raise _LineError("no_text", "the text holds no word")
    recording_id = fields.get("recording_id") or recording_id_of(fields["audio"])
    offset_s = _seconds(fields, "offset_s")
    duration_s = _seconds(fields, "duration_s")
    if duration_s == 0:
        raise _LineError("bad_time", "duration_s is 0")
    return Segment(
        segment_id=fields["segment_id"],
        recording_id=recording_id,
        speaker_id=fields.get("speaker_id") or recording_id,
        audio_path=str(root / fields["audio"]),
        offset_s=offset_s or 0.0,
        duration_s=duration_s,
        text=spoken,
        language=fields.get("language") or language,
        split=fields.get("split") or None,
        source=source,
        speaker_stated=bool(fields.get("speaker_id")),
    )


def recording_id_of(audio: str) -> str:
    """The id of a recording that the manifest names by its audio path alone; the suffix does not count.

    `a.wav` -> `a`; any other path gets a digest of itself, as `x/y.wav` and `x-y.wav` are two recordings:
    `x/y.wav` -> `x-y-8c9048ad`; `/data/my talk.wav` -> `my-talk-` and a digest.
    """
    path = PurePath(audio)
    name = str(path.parent / path.stem)
    if text.id_problem(name) is None:
        return name
    digest = blake2b(name.encode(), digest_size=4).hexdigest()
    nested = f"{name.replace('/', '-')}-{digest}"
    if ".." not in path.parts and text.id_problem(nested) is None:
        return nested
    stem = re.sub(r"[^\w.@+=-]", "-", path.stem).lstrip(".@+=-") or "recording"
    room = text.ID_MAX_BYTES - len(digest) - 1
    return f"{stem.encode()[:room].decode(errors='ignore')}-{digest}"


def _seconds(fields: dict[str, str], name: str) -> float | None:
    value = fields.get(name)
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        raise _LineError("bad_time", f"{name} {value[:40]!r} is no number") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise _LineError("bad_time", f"{name} {value[:40]!r} is negative or not finite")
    return seconds
