"""Cached frames by chunk, memory-mapped: a training set need not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Value, disable_progress_bars

from earmark.errors import InputError


class ChunkFrames:
    """Random access to the frames of feature shards (schema FEATURES).

    `cache` is a folder for the memory-mapped copy; the caller removes it. InputError if a shard is missing, a chunk id
    occurs twice, or the shards' frames are not of one width.
    """

    def __init__(self, shards: Sequence[Path], cache: Path):
        schema = Features({"chunk_id": Value("string"), "n_frames": Value("int32"), "frames": Value("binary")})
        missing = [str(path) for path in shards if not path.is_file()]
        if missing or not shards:
            raise InputError(f"no features at {', '.join(missing) or 'all'}; run the stage that encodes the chunks")
        disable_progress_bars()
        self._table = Dataset.from_parquet([str(path) for path in shards], features=schema, cache_dir=str(cache))
        ids = self._table["chunk_id"][:]
        self._rows = {chunk_id: row for row, chunk_id in enumerate(ids)}
        if len(self._rows) != len(ids):
            twice = next(chunk_id for row, chunk_id in enumerate(ids) if self._rows[chunk_id] != row)
            raise InputError(f"{shards[0].parent}: chunk {twice} has features twice; delete the stale shard")
        if not ids:
            raise InputError(f"{shards[0].parent}: the features hold no chunk")
        self.dim = self._one(0).shape[1]

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._rows

    def _one(self, row: int) -> np.ndarray:
        record = self._table[row]
        return np.frombuffer(bytearray(record["frames"]), "<f2").reshape(record["n_frames"], -1)

    def batch(self, chunk_ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """frames[B, T, dim] in float32, zero beyond each chunk's end, and lengths[B]."""
        clips = [self._one(self._rows[chunk_id]) for chunk_id in chunk_ids]
        wrong = [chunk_id for chunk_id, clip in zip(chunk_ids, clips, strict=True) if clip.shape[1] != self.dim]
        if wrong:
            raise InputError(f"chunk {wrong[0]} has frames of another width than the first; encode all shards again")
        lengths = torch.tensor([len(clip) for clip in clips])
        frames = torch.zeros(len(clips), int(lengths.max()), self.dim)
        for index, clip in enumerate(clips):
            frames[index, : len(clip)] = torch.from_numpy(clip)  # float16 -> float32
        return frames, lengths
