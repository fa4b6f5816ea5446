"""Cached frames by chunk, memory-mapped: a training set need not fit into memory."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, Value, disable_progress_bars

from earmark.artifacts import read_table
from earmark.errors import InputError
from earmark.retrieval.split_rows import SplitRow

log = logging.getLogger(__name__)


class ChunkFrames:
    """Random access to the frames of those of `chunk_ids` that feature shards (schema FEATURES) hold.

    `cache` is a folder for the memory-mapped copy; the caller removes it. InputError if a shard is missing, a chunk id
    occurs twice, none of the chunks has features, or the frames are not of one width.
    """

    def __init__(self, shards: Sequence[Path], chunk_ids: Collection[str], cache: Path):
        schema = Features({"chunk_id": Value("string"), "n_frames": Value("int32"), "frames": Value("binary")})
        missing = [str(path) for path in shards if not path.is_file()]
        if missing or not shards:
            raise InputError(f"no features at {', '.join(missing) or 'all'}; run the stage that encodes the chunks")
        wanted = set(chunk_ids)
        ids = [chunk_id for path in shards for chunk_id in read_table(path, ["chunk_id"])["chunk_id"].to_pylist()]
        ids = [chunk_id for chunk_id in ids if chunk_id in wanted]
        self._rows = {chunk_id: row for row, chunk_id in enumerate(ids)}
        if len(self._rows) != len(ids):
            twice = next(chunk_id for row, chunk_id in enumerate(ids) if self._rows[chunk_id] != row)
            raise InputError(f"{shards[0].parent}: chunk {twice} has features twice; delete the stale shard")
        if not ids:
            raise InputError(
                f"{shards[0].parent}: the features hold none of the {len(wanted)} chunks of the splits; give "
                "splits.dev_speakers and splits.test_speakers chunks, or run the stage that encodes the chunks"
            )
        disable_progress_bars()
        self._table = Dataset.from_parquet(
            [str(path) for path in shards],
            features=schema,
            cache_dir=str(cache),
            filters=pc.field("chunk_id").isin(list(wanted)),
        )
        self._lengths: list[int] = list(self._table["n_frames"])
        self.dim = self._one(0).shape[1]

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._rows

    def _one(self, row: int) -> np.ndarray:
        record = self._table[row]
        return np.frombuffer(bytearray(record["frames"]), "<f2").reshape(record["n_frames"], -1)

    def length(self, chunk_id: str) -> int:
        """The number of a chunk's frames."""
        return self._lengths[self._rows[chunk_id]]

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


@contextmanager
def cached_frames(shards: Sequence[Path], chunk_ids: Collection[str]) -> Iterator[ChunkFrames]:
    """`ChunkFrames` on a temporary folder, removed at the end.

    Under Slurm the folder is $SLURM_TMPDIR where that is set: a memory map wants a disk of the node's own, not the file
    system that all nodes share. Elsewhere it is the machine's folder for temporary files ($TMPDIR).
    """
    local = os.environ.get("SLURM_TMPDIR") or None
    with tempfile.TemporaryDirectory(prefix="earmark-frames-", dir=local) as cache:
        yield ChunkFrames(shards, chunk_ids, Path(cache))


def rows_with_frames(rows: Sequence[SplitRow], frames: ChunkFrames, source: Path) -> list[SplitRow]:
    """Those of `source`'s rows that have features; how many have none is logged."""
    kept = [row for row in rows if row.chunk_id in frames]
    if len(kept) < len(rows):
        log.warning(
            "%s: %d of %d chunks have no features (rejected on encoding)", source, len(rows) - len(kept), len(rows)
        )
    return kept
