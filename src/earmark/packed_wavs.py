"""Whether the wavs that a trainer is to hear lie where its lines say, or are still packed.

An export of very many wavs holds them in a `wavs.tar` for each folder (`export.max_wav_files`); the lines name them
where they are to be unpacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from earmark.audio import is_missing
from earmark.errors import InputError

_LOOKED_AT = 5  # lines, evenly spread over the file
_UNREADABLE = 100  # lines on end that are passed over
# As conversations and as ChatML name their audio, in a line of JSON as it is written.
_AUDIO = re.compile(r"<audio>(.+?)</audio>|<\|startofspeech\|>!(.+?)<\|endofspeech\|>")


def check_unpacked(wavs: Sequence[Path], lines: Path) -> None:
    """InputError if the wavs that `lines` names are packed in the folders `wavs`, and not all are unpacked as well.

    `lines` are conversations or ChatML. A few of them are looked at, spread over the file; those that name no audio are
    passed over: whoever reads them all says what is wrong with them.
    """
    packed = [folder / "wavs.tar" for folder in wavs if (folder / "wavs.tar").exists()]
    if not packed:
        return
    for audio in _some_audio(lines):
        if is_missing(lines.parent / audio):
            raise InputError(
                f"{packed[0]}: the wavs that {lines} names are packed (export.max_wav_files, export.wav_root); unpack "
                f"all {len(packed)} where the lines say ({audio}), or raise export.max_wav_files, and run again"
            )


def _some_audio(lines: Path) -> Iterator[str]:
    size = lines.stat().st_size
    with lines.open("rb") as file:
        for number in range(_LOOKED_AT):
            if start := size * number // _LOOKED_AT:
                file.seek(start - 1)
                file.readline()  # the rest of the line that is there
            else:
                file.seek(0)
            if (audio := _next_audio(file)) is not None:
                yield audio


def _next_audio(file: BufferedReader) -> str | None:
    for _ in range(_UNREADABLE):
        line = file.readline()
        if found := _AUDIO.search(line.decode("utf-8", "replace")):
            try:
                return str(json.loads(f'"{found[1] or found[2]}"'))
            except ValueError:
                continue
    return None
