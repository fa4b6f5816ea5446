"""The interchange file of earlier systems: term_level_chunks_merged.json, and its shards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from earmark.artifacts import CHUNKS, atomic_folder, atomic_path, iterate_rows
from earmark.export.wavs import wav_path
from earmark.text import readable

_COLUMNS = [name for name in CHUNKS.names if name != "audio"]


def write_interchange(chunks: list[Path], wav_folders: list[Path], output: Path, *, context_s: float) -> None:
    """Write one JSON list of all chunks, one object a line; `wav_folders[i]` holds the wavs of `chunks[i]`.

    Times are seconds from the segment's start. A no-term chunk has an empty list of ground-truth terms.
    """
    with atomic_path(output) as temporary:
        _write_list(temporary, _entries(chunks, wav_folders, context_s))


def write_interchange_shards(
    chunks: list[Path], wav_folders: list[Path], folder: Path, *, context_s: float, shard_rows: int
) -> None:
    """Write the same entries as lists of `shard_rows` each, `folder`/term_level_chunks_{start}_{end}.json.

    The list of entries [start, end), counted from 0 over all chunks; the last list ends where they do. Without a chunk
    there is one empty list, 0_0.
    """
    entries = _entries(chunks, wav_folders, context_s)
    with atomic_folder(folder) as temporary:
        start = 0
        while True:
            part = temporary / "part.json"
            count = _write_list(part, itertools.islice(entries, shard_rows))
            if count or not start:
                part.rename(temporary / f"term_level_chunks_{start}_{start + count}.json")
            else:
                part.unlink()
            start += count
            if count < shard_rows:
                break


def _write_list(path: Path, entries: Iterable[str]) -> int:
    """Write a JSON list, one entry a line; return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, entry in enumerate(entries, start=1):
            file.write(("[\n" if count == 1 else ",\n") + entry)
        file.write("\n]\n" if count else "[]\n")
    return count


def _entries(chunks: list[Path], wav_folders: list[Path], context_s: float) -> Iterator[str]:
    for path, folder in zip(chunks, wav_folders, strict=True):
        absolute = folder.absolute()
        for chunk in iterate_rows(path, columns=_COLUMNS):
            wav = wav_path(absolute, chunk["recording_id"], chunk["chunk_id"])
            yield json.dumps(_entry(chunk, wav, context_s), ensure_ascii=False)


def _entry(chunk: dict[str, Any], wav: Path, context_s: float) -> dict[str, Any]:
    # A no-term chunk has no term inside: the whole slice stands in for it.
    start_s = chunk["term_start_s"] if chunk["has_term"] else chunk["start_s"]
    end_s = chunk["term_end_s"] if chunk["has_term"] else chunk["end_s"]
    return {
        "segment_id": chunk["segment_id"],
        "recording_id": chunk["recording_id"],  # this and the next beyond the format: splits need them
        "speaker_id": chunk["speaker_id"],
        "term_chunk_audio": str(wav),
        "term_chunk_text": readable(chunk["text"]),
        "term_chunk_audio_ground_truth_terms": [chunk["main_term"], *chunk["other_terms"]] if chunk["has_term"] else [],
        "term_start_time": start_s,
        "term_end_time": end_s,
        "term_duration": end_s - start_s,
        "extended_start_time": chunk["start_s"],
        "extended_end_time": chunk["end_s"],
        "extended_duration": chunk["end_s"] - chunk["start_s"],
        "context_seconds": context_s if chunk["has_term"] else 0.0,
    }
