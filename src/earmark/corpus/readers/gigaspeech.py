"""GigaSpeech: its own JSON, and the tab-separated manifest that speech translation toolkits make of it.

Formats: GigaSpeech.json of https://github.com/SpeechColab/GigaSpeech, and fairseq's speech-to-text manifest
(https://github.com/facebookresearch/fairseq/tree/main/examples/speech_to_text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earmark.corpus.lines import opened, scalar_text
from earmark.corpus.readers.tables import tsv_rows
from earmark.corpus.records import BadEntry, Entry, EntryError, duration_between
from earmark.errors import InputError
from earmark.json_items import list_items

TSV_SAMPLE_RATE = 16_000  # of the offsets and lengths in a TSV's audio column, whatever rate the file has
_TSV_COLUMNS = {
    "segment_id": ("id",),
    "audio": ("audio",),
    "text": ("src_text",),
    "frames": ("n_frames",),
    "speaker": ("speaker",),
    "language": ("src_lang",),
}
_NUMBER_LIKE = re.compile(r"[-+.0-9]*")
_FRAMES = re.compile(r"[0-9]{1,15}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(manifest: Path, *, subset: str | None) -> Iterator[Entry | BadEntry]:
    """Entries of GigaSpeech.json, or of a TSV of it; a file whose first character is `{` is JSON.

    `subset` (`XS` or `{XS}`) keeps the segments of one subset; it is for JSON alone. InputError if the file is neither
    form, breaks off, or holds no segment of `subset`.
    """
    with opened(manifest) as file:
        beginning = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if beginning.startswith(b"{"):
        yield from _read_json(manifest, None if subset is None else _subset_name(subset))
    elif subset is not None:
        raise InputError(f"{manifest}: a TSV names no subsets, but corpus.subset is {subset}; set it to null")
    else:
        yield from _read_tsv(manifest)


def _read_tsv(manifest: Path) -> Iterator[Entry | BadEntry]:
    for row in tsv_rows(manifest, _TSV_COLUMNS, required=("segment_id", "audio", "text")):
        if isinstance(row, BadEntry):
            yield row
            continue
        source, cells = row
        try:
            audio, offset_s, duration_s = _span(cells["audio"], cells.get("frames", ""))
        except EntryError as error:
            yield error.at(source, cells["segment_id"])
            continue
        yield Entry(
            source,
            segment_id=cells["segment_id"],
            audio=audio,
            text=cells["text"],
            speaker_id=_stated(cells.get("speaker")),
            offset_s=offset_s,
            duration_s=duration_s,
            language=cells.get("language"),
        )


def _span(audio: str, frames: str) -> tuple[str, float | None, float | None]:
    """(path, offset_s, duration_s) of `path:offset:frames`; a path without numbers is the whole file."""
    path, *numbers = audio.rsplit(":", 2)
    if not numbers or not _NUMBER_LIKE.fullmatch(numbers[-1]):
        return audio, None, None
    if len(numbers) != 2 or not all(_FRAMES.fullmatch(number) for number in numbers):
        raise EntryError("bad_time", f"the audio {audio[-80:]!r} does not end in :offset:frames, two whole numbers")
    offset, length = map(int, numbers)
    if frames and frames != numbers[1] and frames != str(length):
        raise EntryError("bad_time", f"n_frames is {frames[:40]!r}, but the audio column says {length}")
    return path, offset / TSV_SAMPLE_RATE, length / TSV_SAMPLE_RATE


def _read_json(manifest: Path, subset: str | None) -> Iterator[Entry | BadEntry]:
    subsets: set[str] = set()
    count = 0
    for count, audio in enumerate(list_items(manifest, "audios"), start=1):
        yield from _audio_entries(f"{manifest}: audios[{count - 1}]", audio, subset, subsets)
    if not count:
        raise InputError(f'{manifest}: there is nothing in a list called "audios"; expected GigaSpeech.json')
    if subset is not None and subset not in subsets:
        raise InputError(
            f"{manifest}: there is no segment of the subset {subset}; set corpus.subset to one of "
            f"{', '.join(sorted(subsets)) or 'its subsets (it names none: null)'}"
        )


def _audio_entries(source: str, audio: Any, subset: str | None, subsets: set[str]) -> Iterator[Entry | BadEntry]:
    """Entries of one audio; the names of the subsets that its segments are in are added to `subsets`."""
    segments = audio.get("segments") if isinstance(audio, dict) else None
    if not isinstance(segments, list):
        yield EntryError("broken_line", "not an object with a list of segments").at(source)
        return
    for index, segment in enumerate(segments):
        place = f"{source}.segments[{index}]"
        identifier = ""
        try:
            if not isinstance(segment, dict):
                raise EntryError("broken_line", "not a JSON object")
            identifier = _text(segment, "sid")
            names = _subset_names(segment)
            subsets.update(names)
            if subset is not None and subset not in names:
                continue
            begin = _text(segment, "begin_time")
            yield Entry(
                place,
                segment_id=identifier,
                audio=_text(audio, "path"),
                text=_text(segment, "text_tn"),
                recording_id=_text(audio, "aid"),
                speaker_id=_speaker(segment) or _speaker(audio),
                offset_s=begin,
                duration_s=duration_between(begin, _text(segment, "end_time")),
                split="dev" if "DEV" in names else "test" if "TEST" in names else "train",
            )
        except EntryError as error:
            yield error.at(place, identifier)


def _text(fields: dict[str, Any], name: str) -> str:
    if fields.get(name) is None:
        raise EntryError("broken_line", f"no {name}")
    return scalar_text(name, fields[name])


def _speaker(fields: dict[str, Any]) -> str | None:
    return None if fields.get("speaker") is None else _stated(scalar_text("speaker", fields["speaker"]))


def _stated(speaker: str | None) -> str | None:
    return None if speaker == "N/A" else speaker


def _subset_names(segment: dict[str, Any]) -> set[str]:
    names = segment.get("subsets")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise EntryError("broken_line", "subsets is no list of names")
    return {_subset_name(name) for name in names}


def _subset_name(spelling: str) -> str:
    return spelling.strip().strip("{}").upper()
