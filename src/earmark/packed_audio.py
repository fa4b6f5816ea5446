"""Audio packed many recordings to a file, one a row: Parquet, or the Arrow files that `datasets` saves."""

from __future__ import annotations

from pathlib import Path


def packed_audio(path: Path, row: int) -> bytes:
    """The encoded audio (WAV, FLAC, ...) in row `row` of `path`, from its column `audio`: struct{bytes, path}.

    AudioError if the file, the row or its bytes are missing.
    """
    raise NotImplementedError
