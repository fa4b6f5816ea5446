"""One pass over the manifest that deals its recordings out to shards."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from earmark.artifacts import CORPUS, RejectedRows, StageTable, write_json
from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry
from earmark.errors import InputError

# A manifest shard is a corpus shard before its audio was looked at: duration_s may be null, `source` is file:line.
MANIFEST = CORPUS.append(pa.field("source", pa.string()))

UNKNOWN_DURATION_S = 5.0  # what a segment without duration_s weighs when shards are balanced
OPEN_SHARDS = 250  # written in one pass: well under the number of files a process may open
PENDING_ROWS = 100_000  # held in memory over all open shards


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
    """Write `shards[name]` (MANIFEST tables) and, beside `summary`, the lines that are no segments.

    Recordings are dealt out longest first, each to the shard that holds the least: deterministic, balanced by
    duration, and a recording is never split. The manifest is read once to deal and once for every OPEN_SHARDS shards
    to write, so only ids stay in memory. `summary` holds the counts and `without_speaker`, the segments that name none.
    """
    weights: dict[str, float] = defaultdict(float)
    without_speaker = 0
    rejected = RejectedRows("manifest lines", max_rejected_fraction)
    for row in read_corpus(format, manifest, audio_root=audio_root, columns=columns, subset=subset, language=language):
        rejected.input += 1
        if isinstance(row, BadEntry):
            rejected.reject(row.id, row.reason, row.detail)
        else:
            rejected.kept += 1
            without_speaker += not row.speaker_stated
            weights[row.recording_id] += UNKNOWN_DURATION_S if row.duration_s is None else row.duration_s
    if not rejected.input:
        raise InputError(f"{manifest}: the manifest holds no segment; add one segment a line below the header")
    rejected.close(summary)
    if without_speaker:
        logging.warning(
            "%d segments name no speaker; their recording stands in for it, so one voice may be on both sides of a "
            "split",
            without_speaker,
        )
    shard_of = _deal(weights, sorted(shards))
    names = sorted(shards)
    for first in range(0, len(names), OPEN_SHARDS):
        batch = names[first : first + OPEN_SHARDS]
        with ExitStack() as stack:
            tables = {
                name: stack.enter_context(
                    StageTable(
                        shards[name], MANIFEST, unit="segments", max_rejected_fraction=0,
                        rows_per_group=PENDING_ROWS // len(batch),
                    )
                )
                for name in batch
            }  # fmt: skip
            for row in read_corpus(
                format, manifest, audio_root=audio_root, columns=columns, subset=subset, language=language
            ):
                if isinstance(row, BadEntry) or (table := tables.get(shard_of[row.recording_id])) is None:
                    continue
                table.rejected.input += 1
                table.keep(asdict(row))
    write_json(summary, {**rejected.counts(), "without_speaker": without_speaker})
    logging.info(
        "%d lines, %d segments, %d recordings, %d rejected", rejected.input, rejected.kept, len(weights),
        rejected.rejected,
    )  # fmt: skip


def _deal(weights: dict[str, float], shards: list[str]) -> dict[str, str]:
    heap = [(0.0, name) for name in shards]
    shard_of = {}
    for recording_id, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        load, name = heapq.heappop(heap)
        shard_of[recording_id] = name
        heapq.heappush(heap, (load + weight, name))
    return shard_of
