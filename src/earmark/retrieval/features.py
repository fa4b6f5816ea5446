"""Encoding each chunk once: the frozen encoder's frames, cached for training and evaluation."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.artifacts import FEATURES, StageTable, iterate_rows, read_table
from earmark.audio import decode_audio
from earmark.errors import AudioError, EarmarkError
from earmark.logs import progress
from earmark.retrieval.whisper import check_clip, encode_frames, load_encoder, log_mel, resolve_layer

log = logging.getLogger(__name__)

# Chunks are read this many at a time and sorted by length before they are batched, so that batches hold little padding.
_SORT_WINDOW = 512


def encode_chunks(
    chunks: Path,
    output: Path,
    *,
    encoder: str,
    layer: int,
    seed: int,
    batch_size: int,
    threads: int,
    max_rejected_fraction: float,
) -> None:
    """Write the frames of every chunk of one shard (schema FEATURES, in the order of the chunks).

    `encoder` is what `earmark.retrieval.whisper.load_encoder` takes, `layer` how many of its layers are run (counted
    from the last if negative: -1 is all). Frames are float16: they are inputs, nothing is trained in that type. A chunk
    whose audio cannot be decoded, is empty, not finite or too long is rejected; TooManyRejectedError above
    `max_rejected_fraction`.
    """
    torch.set_num_threads(threads)
    model = load_encoder(encoder, seed)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # its stub is wrong
    layers = resolve_layer(layer, model.config.encoder_layers)
    with StageTable(
        output, FEATURES, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=_SORT_WINDOW
    ) as table:
        rows = progress(iterate_rows(chunks, columns=["chunk_id", "audio"]), total=_count(chunks), unit="chunks")
        while window := list(itertools.islice(rows, _SORT_WINDOW)):
            table.rejected.input += len(window)
            clips = _decode(window, model.config.max_source_positions, chunks, table)
            frames = _encode(clips, model, layers, batch_size)
            for chunk_id in clips:
                packed = frames[chunk_id].astype("<f2")
                if not np.isfinite(packed).all():
                    raise EarmarkError(f"{chunks}: {chunk_id}: {encoder} gives states that float16 cannot hold")
                table.keep({"chunk_id": chunk_id, "n_frames": len(packed), "frames": packed.tobytes()})
    log.info("%s: %d chunks encoded by %s, layer %d", output, table.rejected.kept, encoder, layers)


def _count(chunks: Path) -> int:
    return int(read_table(chunks, columns=["chunk_id"]).num_rows)


def _decode(rows: list[dict[str, Any]], max_states: int, source: Path, table: StageTable) -> dict[str, np.ndarray]:
    """The usable clips of `rows`, by chunk id; the others are rejected."""
    clips = {}
    for row in rows:
        try:
            clip = decode_audio(row["audio"]["bytes"])
            check_clip(clip, max_states)
        except (AudioError, soundfile.LibsndfileError, TypeError) as error:
            table.reject(row["chunk_id"], "bad_audio", f"{source}: {error}")
        else:
            clips[row["chunk_id"]] = clip
    return clips


def _encode(clips: dict[str, np.ndarray], model: WhisperEncoder, layers: int, batch_size: int) -> dict[str, np.ndarray]:
    """frames[n, dim] of each clip; batches are made of clips of like length."""
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    by_length = sorted(clips, key=lambda chunk_id: clips[chunk_id].size)
    frames = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        with torch.inference_mode():
            mel, lengths = log_mel(extractor, [clips[key] for key in batch], model.config.max_source_positions)
            encoded, counts = encode_frames(model, mel.to(model.device), lengths, layers)
        for chunk_id, clip_frames, count in zip(batch, encoded.cpu().numpy(), counts.tolist(), strict=True):
            frames[chunk_id] = clip_frames[:count]
    return frames
