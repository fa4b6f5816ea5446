"""Encoding each chunk once: the frozen encoder's frames, cached for training and evaluation."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from earmark.artifacts import FEATURES, StageTable, iterate_rows, read_table
from earmark.audio import decode_audio
from earmark.errors import AudioError, EarmarkError
from earmark.logs import progress
from earmark.retrieval.encoders import FrozenEncoder, load_frozen_encoder

log = logging.getLogger(__name__)

# Chunks are read this many at a time and sorted by length before they are batched, so that batches hold little padding.
_SORT_WINDOW = 512


def encode_chunks(
    chunks: Path,
    output: Path,
    *,
    splits: Sequence[Path] = (),
    encoder: str,
    layer: int,
    seed: int,
    batch_size: int,
    threads: int,
    max_rejected_fraction: float,
) -> None:
    """Write the frames of every chunk of one shard (schema FEATURES, in the order of the chunks).

    With `splits`, of those alone that these split tables hold: where they keep few of many, the others would cost days.
    `encoder`, `seed` and `layer` are what `encoders.load_frozen_encoder` takes. Frames are float16: they are inputs,
    nothing is trained in that type. A chunk whose audio cannot be decoded, is empty, not finite or not of a length that
    the encoder takes is rejected; TooManyRejectedError above `max_rejected_fraction`.
    """
    torch.set_num_threads(threads)
    frozen = load_frozen_encoder(encoder, seed, layer)
    frozen.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with StageTable(
        output, FEATURES, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=_SORT_WINDOW
    ) as table:
        wanted = _wanted(chunks, splits)
        held = (row for row in iterate_rows(chunks, columns=["chunk_id", "audio"]) if row["chunk_id"] in wanted)
        rows = progress(held, total=len(wanted), unit="chunks")
        while window := list(itertools.islice(rows, _SORT_WINDOW)):
            table.rejected.input += len(window)
            clips = _decode(window, frozen, chunks, table)
            frames = _encode(clips, frozen, batch_size)
            for chunk_id in clips:
                packed = frames[chunk_id].astype("<f2")
                if not np.isfinite(packed).all():
                    raise EarmarkError(f"{chunks}: {chunk_id}: {encoder} gives states that float16 cannot hold")
                table.keep({"chunk_id": chunk_id, "n_frames": len(packed), "frames": packed.tobytes()})
    log.info("%s: %d chunks encoded by %s (%s)", output, table.rejected.kept, encoder, frozen.name)


def _wanted(chunks: Path, splits: Sequence[Path]) -> set[str]:
    own = set(read_table(chunks, columns=["chunk_id"])["chunk_id"].to_pylist())
    if not splits:
        return own
    # Never all ids of the splits at once: there may be millions.
    rows = (row["chunk_id"] for path in splits for row in iterate_rows(path, 65_536, ["chunk_id"]))
    return {chunk_id for chunk_id in rows if chunk_id in own}


def _decode(
    rows: list[dict[str, Any]], encoder: FrozenEncoder, source: Path, table: StageTable
) -> dict[str, np.ndarray]:
    """The usable clips of `rows`, by chunk id; the others are rejected."""
    clips = {}
    for row in rows:
        try:
            clip = decode_audio(row["audio"]["bytes"])
            encoder.check_clip(clip)
        except (AudioError, soundfile.LibsndfileError, TypeError) as error:
            table.reject(row["chunk_id"], "bad_audio", f"{source}: {error}")
        else:
            clips[row["chunk_id"]] = clip
    return clips


def _encode(clips: dict[str, np.ndarray], encoder: FrozenEncoder, batch_size: int) -> dict[str, np.ndarray]:
    """frames[n, dim] of each clip; batches are made of clips of like length."""
    by_length = sorted(clips, key=lambda chunk_id: clips[chunk_id].size)
    frames: dict[str, np.ndarray] = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        frames.update(zip(batch, encoder.encode([clips[chunk_id] for chunk_id in batch]), strict=True))
    return frames
