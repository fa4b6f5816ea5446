"""Converting lists of audio and text into a training format, outside any run: `earmark convert`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from earmark.artifacts import RejectedRows, atomic_path
from earmark.audio import audio_info
from earmark.errors import AudioError, InputError
from earmark.export.formats import LENGTHS, Example, fbank_frames, line_problem, line_writer, text_units
from earmark.export.tokenizer import token_counter
from earmark.logs import progress

# Of ChatML and conversations: a line that holds one in its path or text would say something else.
_MARK = re.compile(r"<\||\|>|</?audio>")
# The spellings of each field, in the order in which they are looked for.
_KEY, _WAV, _TEXT = ("key", "id"), ("wav", "source", "audio"), ("txt", "target", "text")


@dataclass(frozen=True, slots=True)
class _Bad:
    """A line that cannot be converted."""

    key: str
    reason: str
    detail: str


def convert(
    source: Path,
    output: Path,
    *,
    format: str,
    calculate_lengths: bool,
    tokenizer: str,
    prompt: str,
    audio_root: Path | None,
    max_rejected_fraction: float,
) -> None:
    """Write `output` in `format` (funasr_nano, funasr, conversation, flat) from JSON lines of {"key", "wav", "txt"}.

    FunASR's {"key", "source", "target"} and flat's {"audio", "text"} are read too; a line without a key is named after
    its audio. A relative path starts at `audio_root`, or else at the folder of `source`. With `calculate_lengths` the
    formats that hold lengths get them, of audio from its header and of text by `tokenizer`; without, they get none and
    no audio is looked at. Rejected, beside `output`: broken_line, no_text, holds_mark,
    not_exportable; with lengths unreadable_audio, too_short.
    """
    if not source.is_file():
        raise InputError(f"{source}: there is no such file; give JSON lines of key, wav and txt")
    if output.exists() and source.samefile(output):
        raise InputError(f"{output}: is the input as well; choose another output")
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name the file to write")
    if not prompt.strip():
        raise InputError("the prompt is empty; say what conversation and flat are to ask for")
    with_lengths = calculate_lengths and format in LENGTHS
    count = (token_counter(tokenizer) if format == "funasr_nano" else text_units) if with_lengths else None
    line_of = line_writer(format, count)
    root = str((audio_root or source.parent).resolve()).rstrip("/") + "/"
    rejected = RejectedRows("lines", max_rejected_fraction)
    with atomic_path(output) as temporary:
        with temporary.open("wb") as file:
            for number, line in progress(_lines(source), unit="lines"):
                rejected.input += 1
                found = _example(line, root, prompt)
                if with_lengths and isinstance(found, Example):
                    found = _with_duration(found)
                if isinstance(found, _Bad):
                    rejected.reject(found.key, found.reason, f"{source}:{number}: {found.detail}")
                    continue
                row = line_of(found)
                if problem := line_problem(format, row, with_lengths=with_lengths):
                    detail = f"{source}:{number}: the {format} line made of it is not valid: {problem}"
                    rejected.reject(found.key, "not_exportable", detail)
                    continue
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                rejected.kept += 1
        if not rejected.input:
            raise InputError(f"{source}: holds no line; give JSON lines of key, wav and txt")
        rejected.close(output)
    logging.info("%d of %d lines written to %s", rejected.kept, rejected.input, output)


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, line


def _example(line: bytes, root: str, prompt: str) -> Example | _Bad:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _Bad("", "broken_line", f"not valid JSON ({error})")
    if not isinstance(row, dict):
        return _Bad("", "broken_line", "not a JSON object")
    key, wav, text = _field(row, _KEY), _field(row, _WAV), _field(row, _TEXT)
    if not type(key) is type(wav) is type(text) is str:
        for names, value in ((_KEY, key), (_WAV, wav), (_TEXT, text)):
            if value is not None and not isinstance(value, str):
                return _Bad("", "broken_line", f"{names[0]} is a {type(value).__name__}; expected text")
    if not wav or "\0" in wav:
        return _Bad(key or "", "broken_line", f"no {' or '.join(_WAV)}, or a NUL in it")
    if not text or text.isspace():
        return _Bad(key or wav, "no_text", f"no {' or '.join(_TEXT)}, or it is blank")
    if _MARK.search(wav) or _MARK.search(text):
        return _Bad(
            key or wav, "holds_mark", "its path or text holds a mark of the formats: <|, |>, <audio> or </audio>"
        )
    path = os.path.normpath(wav if wav.startswith("/") else root + wav)  # pathlib costs as much as all the rest
    return Example(key=key or wav, wav=path, duration_s=0.0, text=text, prompt=prompt, answer=text)


def _field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := row.get(name)) is not None:
            return value
    return None


def _with_duration(example: Example) -> Example | _Bad:
    try:
        duration_s = audio_info(Path(example.wav)).duration_s
    except AudioError as error:
        return _Bad(example.key, "unreadable_audio", str(error))
    if fbank_frames(duration_s) < 1:
        return _Bad(example.key, "too_short", f"{duration_s:.3f} s hold no fbank frame")
    return example._replace(duration_s=duration_s)
