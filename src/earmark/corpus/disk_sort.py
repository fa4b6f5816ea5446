"""Sorting more rows than fit in memory: they are spooled to unnamed files, dealt to buckets, and sorted one by one."""

from __future__ import annotations

import itertools
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A shard's rows are ordered so that each recording is read once, front to back; the id settles what is left.
ORDER = ("shard", "audio_path", "audio_row", "channel", "offset_s", "segment_id")
BUCKET_BYTES = 64 * 2**20  # of Arrow data, sorted at once

Place = tuple[int, str, int]  # (shard, audio_path, audio_row, or -1 where there is none): a place in ORDER, roughly


class Spool:
    """Record batches in an unnamed file in `folder`: not even a killed process leaves it behind."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self.schema = schema
        self.n_bytes = 0  # of Arrow data; the file is compressed
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self._writer = pa.ipc.new_stream(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, batch: pa.RecordBatch) -> None:
        self.n_bytes += batch.nbytes
        self._writer.write_batch(batch)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What was appended, in its order; nothing can be appended any more."""
        self._writer.close()
        self._file.seek(0)
        yield from pa.ipc.open_stream(self._file)

    def take(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """The given rows, which must be in rising order."""
        first, found = 0, []
        for batch in self.batches():
            inside = rows[slice(*np.searchsorted(rows, [first, first + batch.num_rows]))]
            found.append(batch.select(columns).take(pa.array(inside - first)))
            first += batch.num_rows
        return pa.Table.from_batches(found).combine_chunks()

    def close(self) -> None:
        self._file.close()


def sorted_by_shard(
    spool: Spool, shards: np.ndarray, sample: Sequence[tuple[int, str, int]], folder: Path
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (shard, table) of the rows of `spool` in ORDER; a shard comes in one piece or in several.

    `shards[n]` is the shard of each row, negative where the row is left out. `sample`: (row of the spool, audio_path,
    audio_row or -1) of some of them, from which the borders between the buckets are taken. The spool is closed.
    """
    places = sorted((int(shards[row]), path, audio_row) for row, path, audio_row in sample if shards[row] >= 0)
    buckets = min(1 + spool.n_bytes // BUCKET_BYTES, len(places) + 1)
    borders = [places[len(places) * number // buckets] for number in range(1, buckets)]
    with ExitStack() as stack:
        spools: list[Spool] = []
        first = 0
        for batch in spool.batches():
            numbers = shards[first : first + batch.num_rows]
            first += batch.num_rows
            batch = batch.append_column("shard", pa.array(numbers, pa.int32())).filter(pa.array(numbers >= 0))
            if not spools:
                spools = [stack.enter_context(Spool(folder, batch.schema)) for _ in range(buckets)]
            bucket_of = _buckets(batch, borders)
            for bucket in np.unique(bucket_of):
                spools[bucket].append(batch.filter(pa.array(bucket_of == bucket)))
        spool.close()
        for part in spools:
            yield from _sorted(pa.Table.from_batches(part.batches(), part.schema))
            part.close()


def _buckets(batch: pa.RecordBatch, borders: list[Place]) -> np.ndarray:
    """bucket[n] of each row: how many borders it has reached."""
    if not borders:
        return np.zeros(batch.num_rows, np.int64)
    rows: list[Any] = pc.fill_null(batch["audio_row"], -1).to_pylist()
    places = zip(batch["shard"].to_pylist(), batch["audio_path"].to_pylist(), rows, strict=True)
    return np.array([bisect_right(borders, place) for place in places], np.int64)


def _sorted(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    table = table.combine_chunks()
    keys = [(name, "ascending") for name in ORDER]
    order = pc.sort_indices(table, sort_keys=keys)
    shards = table["shard"].to_numpy()[order.to_numpy()]
    table = table.drop_columns("shard")
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    for start, end in itertools.pairwise([*starts, len(shards)]):
        yield int(shards[start]), table.take(order[start:end])
