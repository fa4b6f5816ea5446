"""Existing TextGrids, dealt out to the shards of the corpus: one pass over a folder or an archive, nothing unpacked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from earmark.alignment.textgrid_sources import SUFFIX, SourceFile, source_files
from earmark.artifacts import RejectedRows, atomic_path, iterate_rows, write_json
from earmark.errors import InputError

TEXTGRIDS = pa.schema(
    [
        ("name", pa.string()),  # its path inside the source
        ("stem", pa.string()),  # the id it is named after
        ("kind", pa.string()),  # segment | recording: what has that id
        ("data", pa.binary()),  # the file as it is
    ]
)
OPEN_SHARDS = 250  # written in one pass: well under the number of files a process may open
ROW_GROUP_BYTES = 128_000  # held in memory for every open shard, and read at once by the aligner


def pack_textgrids(source: Path, corpus: Mapping[str, Path], shards: Mapping[str, Path], counts: Path) -> None:
    """Write `shards[name]` (TEXTGRIDS tables): the TextGrids of `source` that belong to `corpus[name]` (CORPUS tables).

    A file belongs to the segment, or else the recording, whose id is its name without the suffix. The rows come in the
    order of the source. Of several files for one id the one in a folder named after the speaker counts, where it is the
    only such; otherwise all are rejected as ambiguous_textgrid. Rejected too: no_such_segment, and what `source_files`
    rejects. Rejected rows are beside `counts`.

    Memory: 25 bytes for each segment and recording, and ROW_GROUP_BYTES for each shard; the source is read once for
    every OPEN_SHARDS shards. InputError where `source` cannot be read, or holds no TextGrid of this corpus.
    """
    names = sorted(shards)
    ids = _Ids.of([corpus[name] for name in names])
    rejected = RejectedRows("TextGrids", 1.0)
    strangers: list[str] = []  # the first stems that are no id
    for first in range(0, len(names), OPEN_SHARDS):
        with ExitStack() as stack:
            writers = {
                number: stack.enter_context(_shard_writer(shards[names[number]], ids, rejected))
                for number in range(first, min(first + OPEN_SHARDS, len(names)))
            }
            for file in source_files(source):
                stem = _stem(file.name)
                place = ids.find(stem)
                number = None if place is None else int(ids.shards[place])
                if number not in writers and (first or number is not None):
                    continue  # of another pass
                rejected.input += 1
                if file.problem:
                    rejected.reject(file.name, *file.problem)
                elif place is None or number is None:
                    strangers = [*strangers, stem][:3]
                    rejected.reject(file.name, "no_such_segment", f"no segment or recording has the id {stem[:80]!r}")
                else:
                    writers[number].write(file, stem, place)
    rejected.close(counts)
    if not rejected.kept:
        raise InputError(_nothing_found(source, rejected, strangers, corpus[names[0]]))
    write_json(counts, rejected.counts())
    logging.info("%d TextGrids, %d kept, %d rejected", rejected.input, rejected.kept, rejected.rejected)


def _stem(name: str) -> str:
    return PurePosixPath(name).name[: -len(SUFFIX)]


def _nothing_found(source: Path, rejected: RejectedRows, strangers: list[str], corpus: Path) -> str:
    if not strangers:
        return f"{source}: holds no usable TextGrid ({rejected.input} were rejected); set align.textgrid.path"
    row: dict[str, Any] = next(iterate_rows(corpus, columns=["segment_id", "recording_id"]), {})
    return (
        f"{source}: none of its {rejected.input} TextGrids belongs to this corpus. They are named "
        f"{', '.join(strangers)}; the ids look like {row.get('segment_id')!r} (segment) and "
        f"{row.get('recording_id')!r} (recording). Rename the files, or set corpus.columns so that the ids fit"
    )


@dataclass(frozen=True)
class _Ids:
    """All segment and recording ids, as sorted 64-bit hashes: 25 bytes each.

    Two of 8 million ids share a hash once in 600,000 corpora; a TextGrid would lie in the wrong shard then, where no
    one asks for it.
    """

    hashes: np.ndarray  # int64[n], sorted; of a segment before a recording of the same id
    speakers: np.ndarray  # int64[n], hash of the speaker
    shards: np.ndarray  # int32[n], number of the shard
    segments: np.ndarray  # bool[n], False: a recording
    files: np.ndarray  # uint16[n], TextGrids found so far
    own_files: np.ndarray  # uint16[n], those of them in a folder named after the speaker

    @classmethod
    def of(cls, corpus: list[Path]) -> _Ids:
        parts: list[tuple[np.ndarray, np.ndarray, int]] = []
        for wants_segments in (True, False):
            for number, path in enumerate(corpus):
                table = pq.read_table(path, columns=["segment_id" if wants_segments else "recording_id", "speaker_id"])
                hashes, speakers = (_hashes(column) for column in table.columns)
                hashes, first = np.unique(hashes, return_index=True)
                parts.append((hashes, speakers[first], number))
        hashes = np.concatenate([part[0] for part in parts])
        lengths = [len(part[0]) for part in parts]
        order = np.argsort(hashes, kind="stable")
        return cls(
            hashes[order],
            np.concatenate([part[1] for part in parts])[order],
            np.repeat(np.array([part[2] for part in parts], np.int32), lengths)[order],
            order < sum(lengths[: len(corpus)]),
            np.zeros(len(hashes), np.uint16),
            np.zeros(len(hashes), np.uint16),
        )

    def find(self, stem: str) -> int | None:
        wanted = hash(stem)
        place = int(np.searchsorted(self.hashes, wanted))
        return place if place < len(self.hashes) and self.hashes[place] == wanted else None

    def count(self, place: int, name: str) -> None:
        self.files[place] += self.files[place] < np.iinfo(np.uint16).max
        self.own_files[place] += self.is_own(place, name) and self.own_files[place] < np.iinfo(np.uint16).max

    def why_ambiguous(self, place: int) -> str:
        """Why not every file of this id is taken."""
        if self.own_files[place] == 1:
            return "another of this name lies in a folder named after the speaker"
        return f"{self.files[place]} files have this name, and {self.own_files[place]} of them the speaker's folder"

    def is_own(self, place: int, name: str) -> bool:
        """Does the file lie in a folder named after the speaker?"""
        return any(hash(folder) == self.speakers[place] for folder in PurePosixPath(name).parts[:-1])


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    return np.fromiter(map(hash, column.to_pylist()), np.int64, len(column))


class _ShardWriter:
    """One shard's table, written row group by row group."""

    def __init__(self, path: Path, ids: _Ids):
        self.ids = ids
        self.writer = pq.ParquetWriter(path, TEXTGRIDS, compression="zstd", use_dictionary=False)
        self.pending: list[dict[str, Any]] = []
        self.pending_bytes = 0
        self.has_repeated = False  # did several files come for one id?

    def write(self, file: SourceFile, stem: str, place: int) -> None:
        self.ids.count(place, file.name)
        self.has_repeated |= bool(self.ids.files[place] > 1)
        # Names in archives need not be UTF-8.
        name = file.name.encode(errors="backslashreplace").decode()
        kind = "segment" if self.ids.segments[place] else "recording"
        self.pending.append({"name": name, "stem": stem, "kind": kind, "data": file.data})
        self.pending_bytes += len(file.data)
        if self.pending_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.writer.write_table(pa.Table.from_pylist(self.pending, schema=TEXTGRIDS))
        self.pending, self.pending_bytes = [], 0


@contextmanager
def _shard_writer(path: Path, ids: _Ids, rejected: RejectedRows) -> Iterator[_ShardWriter]:
    """A writer of the shard; in the end its rows are counted as kept, and repeated ones sorted out."""
    with atomic_path(path) as temporary:
        shard = _ShardWriter(temporary, ids)
        try:
            yield shard
            shard.flush()
        finally:
            shard.writer.close()
        if shard.has_repeated:
            _sort_out_repeated(temporary, ids, rejected)
        rejected.kept += pq.read_metadata(temporary).num_rows


def _sort_out_repeated(path: Path, ids: _Ids, rejected: RejectedRows) -> None:
    with (
        atomic_path(path) as temporary,
        pq.ParquetFile(path) as table,
        pq.ParquetWriter(temporary, TEXTGRIDS, compression="zstd", use_dictionary=False) as writer,
    ):
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group)
            kept = []
            for name in rows.column("name").to_pylist():
                place = ids.find(_stem(name))
                assert place is not None
                kept.append(ids.files[place] == 1 or (ids.own_files[place] == 1 and ids.is_own(place, name)))
                if not kept[-1]:
                    rejected.reject(name, "ambiguous_textgrid", ids.why_ambiguous(place))
            writer.write_table(rows.filter(pa.array(kept, pa.bool_())))
