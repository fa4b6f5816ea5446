"""One pass over the manifest that deals its recordings out to shards."""

from __future__ import annotations

import heapq
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from earmark.artifacts import CORPUS, RejectedRows, StageTable, write_json
from earmark.corpus.disk_sort import Spool, sorted_by_shard
from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry, Segment
from earmark.errors import InputError
from earmark.logs import progress

# A manifest shard is a corpus shard before its audio was looked at: duration_s may be null, `source` is file:line.
MANIFEST = CORPUS.append(pa.field("source", pa.string()))

UNKNOWN_DURATION_S = 5.0  # what a segment without duration_s weighs when shards are balanced
BATCH_ROWS = 16_384
NAMED_REPEATS = 250_000  # repeated ids that are looked up at once, in a pass over all segments
SAMPLE_STEP = 997  # of so many segments one tells how audio paths are spread

# Rows of a packed file that stay together, so that a shard's job reads few parts of few files.
MAX_BLOCK_ROWS = 256
BLOCKS_PER_SHARD = 16  # the more blocks, the better the balance, so there are shorter ones where rows are few


def split_manifest(
    manifest: Path,
    shards: dict[str, Path],
    summary: Path,
    *,
    format: str,
    audio_root: Path | None,
    columns: Mapping[str, str],
    subset: str | None,
    language: str,
    max_rejected_fraction: float,
) -> None:
    """Write `shards[name]` (MANIFEST tables) and, beside `summary`, the entries that are no segments.

    The manifest is read once; segments wait in unnamed files in the folder of `summary`, and some 50 bytes of each in
    memory. Of segments with one id the first is kept, the others are rejected as duplicate_id.

    Recordings are dealt out longest first, each to the shard that holds the least: balanced by duration, the same
    whatever the order of entries, and a recording is never split. Where audio is packed many recordings to a file,
    blocks of consecutive rows are dealt out instead, and recordings that reach beyond one block.

    A shard's rows are ordered by audio_path, audio_row, channel and offset_s. `summary` holds the counts and
    `without_speaker`, the segments that name none.
    """
    rejected = RejectedRows("manifest lines", max_rejected_fraction)
    rows = read_corpus(format, manifest, audio_root=audio_root, columns=columns, subset=subset, language=language)
    summary.parent.mkdir(parents=True, exist_ok=True)
    with Spool(summary.parent, MANIFEST) as spool:
        segments = _spooled(progress(rows, unit="manifest lines"), spool, rejected)
        if not rejected.input:
            raise InputError(
                f"{manifest}: holds no segment; set corpus.manifest and corpus.format to what the corpus is"
            )
        keeps = _reject_repeats(segments, spool, rejected)
        rejected.kept = int(keeps.sum())
        rejected.close(summary)
        without_speaker = int((np.frombuffer(segments.without_speaker, np.bool_) & keeps).sum())
        if without_speaker:
            logging.warning(
                "%d segments name no speaker; their recording stands in for it, so one voice may be on both sides of "
                "a split",
                without_speaker,
            )
        shard_of = np.full(len(keeps), -1, np.int32)
        shard_of[keeps] = _deal(segments, keeps, len(shards))
        _write(sorted_by_shard(spool, shard_of, segments.sample, summary.parent), shards)
    write_json(summary, {**rejected.counts(), "without_speaker": without_speaker})
    logging.info("%d lines, %d segments, %d rejected", rejected.input, rejected.kept, rejected.rejected)


class _Segments:
    """What stays in memory of every segment, in the order of the manifest."""

    def __init__(self) -> None:
        self.ids = bytearray()  # 128 bits of BLAKE2b each: no two ids share them
        self.recordings = bytearray()  # 64 bits; recordings that share them, if ever, share a shard
        self.files = bytearray()  # 64 bits of the packed file, or else of the recording
        self.file_rows = array("q")  # of the packed file, or else -1
        self.weights_us = array("d")  # whole microseconds: their sum does not depend on the order
        self.without_speaker = bytearray()
        self.sample: list[tuple[int, str, int]] = []  # of every SAMPLE_STEP-th: (number, audio_path, audio_row or -1)

    def add(self, segment: Segment) -> None:
        recording = _digest(segment.recording_id, 8)
        duration_s = UNKNOWN_DURATION_S if segment.duration_s is None else segment.duration_s
        row = -1 if segment.audio_row is None else segment.audio_row
        if len(self.file_rows) % SAMPLE_STEP == 0:
            self.sample.append((len(self.file_rows), segment.audio_path, row))
        self.ids += _digest(segment.segment_id, 16)
        self.recordings += recording
        self.files += recording if row < 0 else _digest(segment.audio_path, 8)
        self.file_rows.append(row)
        self.weights_us.append(round(duration_s * 1e6))
        self.without_speaker.append(not segment.speaker_stated)


def _digest(identifier: str, n_bytes: int) -> bytes:
    return blake2b(identifier.encode(), digest_size=n_bytes).digest()


def _spooled(rows: Iterable[Segment | BadEntry], spool: Spool, rejected: RejectedRows) -> _Segments:
    segments = _Segments()
    batch: list[Segment] = []
    for row in rows:
        rejected.input += 1
        if isinstance(row, BadEntry):
            rejected.reject(row.id, row.reason, row.detail)
            continue
        segments.add(row)
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            spool.append(_record_batch(batch))
            batch = []
    spool.append(_record_batch(batch))
    return segments


def _record_batch(batch: list[Segment]) -> pa.RecordBatch:
    columns = [
        pa.array([value(segment) for segment in batch], field.type)
        for field, value in ((field, attrgetter(field.name)) for field in MANIFEST)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=MANIFEST)


def _reject_repeats(segments: _Segments, spool: Spool, rejected: RejectedRows) -> np.ndarray:
    """keeps[n]: False where an earlier segment has the same id."""
    high, low = np.frombuffer(segments.ids, np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: among equals, the first of the manifest comes first
    equal = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    keeps = np.ones(len(order), np.bool_)
    if not equal.any():
        return keeps
    begins = np.flatnonzero(~np.concatenate([[False], equal]))
    places = np.flatnonzero(equal) + 1
    repeats = order[places]
    firsts = order[begins[np.searchsorted(begins, places, side="right") - 1]]
    keeps[repeats] = False
    by_place = np.argsort(repeats)
    repeats, firsts = repeats[by_place], firsts[by_place]
    for start in range(0, len(repeats), NAMED_REPEATS):
        part = slice(start, start + NAMED_REPEATS)
        named = np.union1d(repeats[part], firsts[part])
        table = spool.take(named, ["segment_id", "source"])
        later = table.take(pa.array(np.searchsorted(named, repeats[part]))).to_pylist()
        earlier = table["source"].take(pa.array(np.searchsorted(named, firsts[part]))).to_pylist()
        for row, first_source in zip(later, earlier, strict=True):
            rejected.reject(row["segment_id"], "duplicate_id", f"{row['source']}: also at {first_source}")
    return keeps


def _groups(segments: _Segments, keeps: np.ndarray, shards: int) -> np.ndarray:
    """group[n], of 64 bits, of every segment that is kept: what is dealt to a shard as a whole."""
    group_of = np.frombuffer(segments.files, np.uint64)[keeps]
    file_rows = np.frombuffer(segments.file_rows, np.int64)[keeps]
    packed = int((file_rows >= 0).sum())
    if not packed:
        return group_of
    rows_per_block = min(MAX_BLOCK_ROWS, max(1, packed // (BLOCKS_PER_SHARD * shards)))
    blocks = np.where(file_rows < 0, 0, file_rows // rows_per_block + 1).astype(np.uint64)
    group_of += blocks * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64, so that it is spread like a digest again
    recordings = np.frombuffer(segments.recordings, np.uint64)[keeps]
    order = np.argsort(recordings)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(recordings[order]) != 0]))
    least, greatest = (extreme.reduceat(group_of[order], starts) for extreme in (np.minimum, np.maximum))
    # A recording of several blocks stays whole. Would it go with one of them, all those that are spread over a whole
    # file would go together.
    groups = np.where(least == greatest, least, recordings[order[starts]])
    group_of[order] = np.repeat(groups, np.diff(starts, append=len(order)))
    return group_of


def _deal(segments: _Segments, keeps: np.ndarray, shards: int) -> np.ndarray:
    """shard[n] of every segment that is kept."""
    groups, group_of = np.unique(_groups(segments, keeps, shards), return_inverse=True)
    loads = np.bincount(group_of, np.frombuffer(segments.weights_us, np.float64)[keeps])
    longest_first = np.lexsort((groups, -loads))
    heap = [(0.0, shard) for shard in range(shards)]
    dealt = array("i")
    for start in range(0, len(groups), BATCH_ROWS):
        for load in loads[longest_first[start : start + BATCH_ROWS]].tolist():
            least_load, shard = heap[0]
            dealt.append(shard)
            heapq.heapreplace(heap, (least_load + load, shard))
    shard_of_group = np.empty(len(groups), np.int32)
    shard_of_group[longest_first] = np.frombuffer(dealt, np.int32)
    return shard_of_group[group_of]


def _write(pieces: Iterator[tuple[int, pa.Table]], shards: dict[str, Path]) -> None:
    """`pieces` are (shard, its rows or some of them), by rising shard; a shard without any becomes an empty table."""
    piece = next(pieces, None)
    for number, name in enumerate(sorted(shards)):
        with StageTable(shards[name], MANIFEST, unit="segments", max_rejected_fraction=0) as table:
            while piece and piece[0] == number:
                table.rejected.input += piece[1].num_rows
                table.keep_table(piece[1])
                piece = next(pieces, None)
