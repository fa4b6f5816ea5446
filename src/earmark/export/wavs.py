"""Writing chunks as wav files, for programs that cannot read audio from a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import soundfile

from earmark.artifacts import iterate_rows
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.logs import progress


def wav_path(folder: Path, recording_id: str, chunk_id: str) -> Path:
    """`{folder}/{recording_id[:3]}/{recording_id}/{chunk_id}.wav`: layered, so that no folder grows without bound."""
    return folder / recording_id[:3] / recording_id / f"{chunk_id}.wav"


def write_wavs(chunks: Path, folder: Path) -> None:
    """Write every chunk of one shard as 16 kHz 16-bit wav below `folder`, which appears only when all are written."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    for stale in (temporary, folder):
        if stale.exists():
            shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    columns = ["chunk_id", "recording_id", "audio"]
    for row in progress(iterate_rows(chunks, columns=columns), unit="wavs"):
        path = wav_path(temporary, row["recording_id"], row["chunk_id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(path), decode_audio(row["audio"]["bytes"]), SAMPLE_RATE, subtype="PCM_16")
    temporary.replace(folder)
