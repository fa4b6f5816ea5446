"""Writing chunks as wav files, for programs that cannot read audio from a table."""

from __future__ import annotations

import io
import logging
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile

from earmark.artifacts import iterate_rows, table_counts
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.logs import progress

PACKED = "wavs.tar"


def wav_path(folder: Path, recording_id: str, chunk_id: str) -> Path:
    """`{folder}/{recording_id[:3]}/{recording_id}/{chunk_id}.wav`: layered, so that no folder grows without bound."""
    return folder / recording_id[:3] / recording_id / f"{chunk_id}.wav"


def export_wavs(
    chunks: Path, splits: list[Path], folder: Path, *, all_chunks: bool, packed: bool, max_files: int
) -> None:
    """Write the wavs of one shard's chunks into `folder`: those that a split keeps, or with `all_chunks` all.

    They are files while the run, all its shards together, has no more than `max_files`. Else, and where `packed`, they
    are one `folder`/wavs.tar, whose members are named `{shard}/{recording_id[:3]}/{recording_id}/{chunk_id}.wav`.
    """
    shard = chunks.stem
    total = sum(table_counts(split)["input" if all_chunks else "kept"] for split in splits)
    chosen = None if all_chunks else {name for split in splits for name in _chunk_ids(split, shard)}
    if packed or total > max_files:
        pack_wavs(chunks, folder, chosen)
        logging.info("packed, as the run has %d wavs; tar -xf %s where they are to be read", total, folder / PACKED)
    else:
        write_wavs(chunks, folder, chosen)


def write_wavs(chunks: Path, folder: Path, chosen: set[str] | None = None) -> None:
    """Write the `chosen` chunks of one shard (None: all) as 16 kHz 16-bit wav below `folder`, which appears only when
    all are written."""
    temporary = _emptied(folder)
    for recording_id, chunk_id, wav in _wavs(chunks, chosen):
        path = wav_path(temporary, recording_id, chunk_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav)
    temporary.replace(folder)


def pack_wavs(chunks: Path, folder: Path, chosen: set[str] | None = None) -> None:
    """The same as one file, `folder`/wavs.tar: a file system that many share suffers from millions of small ones."""
    temporary = _emptied(folder)
    with tarfile.open(temporary / PACKED, "w") as tar:
        for recording_id, chunk_id, wav in _wavs(chunks, chosen):
            # Nothing of the time or the user: the same chunks are the same bytes.
            member = tarfile.TarInfo(str(wav_path(Path(chunks.stem), recording_id, chunk_id)))
            member.size = len(wav)
            tar.addfile(member, io.BytesIO(wav))
    temporary.replace(folder)


def _emptied(folder: Path) -> Path:
    """A new temporary folder beside `folder`, which is removed with what a killed writer left."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    for stale in (temporary, folder):
        if stale.exists():
            shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    return temporary


def _chunk_ids(split: Path, shard: str) -> Iterator[str]:
    """The chunks of one shard in a SPLITS table; the groups of other shards' rows are not read."""
    yield from pq.read_table(split, columns=["chunk_id"], filters=pc.field("shard") == shard)["chunk_id"].to_pylist()


def _wavs(chunks: Path, chosen: set[str] | None) -> Iterator[tuple[str, str, bytes]]:
    """(recording_id, chunk_id, wav file) of each chosen chunk."""
    for row in progress(iterate_rows(chunks, columns=["chunk_id", "recording_id", "audio"]), unit="wavs"):
        if chosen is None or row["chunk_id"] in chosen:
            buffer = io.BytesIO()
            soundfile.write(buffer, decode_audio(row["audio"]["bytes"]), SAMPLE_RATE, format="WAV", subtype="PCM_16")
            yield row["recording_id"], row["chunk_id"], buffer.getvalue()
