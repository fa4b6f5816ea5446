"""LibriSpeech's folders: `speaker/chapter/speaker-chapter.trans.txt` with one audio file a line beside it.

Format: https://www.openslr.org/12 (README of the corpus).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from earmark.corpus.lines import id_and_rest, numbered_lines
from earmark.corpus.records import BadEntry, Entry, EntryError
from earmark.errors import InputError

_TRANSCRIPT = ".trans.txt"
_AUDIO = (".flac", ".wav")  # the first counts where a line has both
_ID_PARTS = re.compile("[-_]")  # 84-121123-0000, in LibriTTS 84_121123_000007_000001


def read(folder: Path) -> Iterator[Entry | BadEntry]:
    """Entries of every chapter at or below `folder`, sorted; `split` is the folder that holds the speakers.

    A line without audio and an audio file without a line are each a BadEntry. InputError if there is no transcript.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: a file; format librispeech takes a folder: set corpus.manifest")
    any_transcript = False
    for chapter, names in _folders(folder):
        transcripts = sorted(name for name in names if name.endswith(_TRANSCRIPT))
        audio = {name for name in names if name.endswith(_AUDIO)}
        any_transcript = any_transcript or bool(transcripts)
        for transcript in transcripts:
            yield from _lines(folder, chapter / transcript, audio)
        for name in sorted(audio):
            detail = f"{chapter / name}: no line of a {_TRANSCRIPT} file beside it says what is spoken"
            yield BadEntry(Path(name).stem, "no_text", detail)
    if not any_transcript:
        raise InputError(
            f"{folder}: neither it nor a folder below holds a {_TRANSCRIPT} file; set corpus.manifest to a folder "
            "above speaker/chapter/"
        )


def _lines(folder: Path, transcript: Path, audio: set[str]) -> Iterator[Entry | BadEntry]:
    """Entries of one transcript; the files they name are taken out of `audio`."""
    chapter = transcript.parent
    *_, subset_name, speaker_name, chapter_name = ("", "", *chapter.absolute().parts)
    used: set[str] = set()
    for number, line in numbered_lines(transcript):
        source = f"{transcript}:{number}"
        try:
            identifier, text = id_and_rest(line)
        except EntryError as error:
            yield error.at(source)
            continue
        beside = [name for suffix in _AUDIO if (name := identifier + suffix) in audio]
        if not beside:
            missing = EntryError("missing_audio", f"no {' or '.join(_AUDIO)} file named {identifier[:80]!r} beside it")
            yield missing.at(source, identifier)
            continue
        used.update(beside)
        parts = _ID_PARTS.split(identifier)
        yield Entry(
            source,
            segment_id=identifier,
            audio=str((chapter / beside[0]).relative_to(folder)),
            text=text,
            recording_id=identifier,
            speaker_id=parts[0] if len(parts) > 2 else None,
            split=subset_name if parts[:2] == [speaker_name, chapter_name] else None,
        )
    audio -= used


def _folders(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of `top` and all below, sorted, through links too but each folder once."""
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(top, onerror=_refuse, followlinks=True):
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield Path(path), names


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: the folder cannot be listed ({error.strerror}); mend its permissions")
