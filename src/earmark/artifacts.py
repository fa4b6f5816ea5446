"""The artifact contracts, and the only code that writes them.

Every write goes to a temporary name in the same folder and is renamed when whole, so that a killed job leaves no
half file. Every table carries, in its Parquet metadata, how many rows its stage was given, kept and rejected.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from earmark.errors import InputError, TooManyRejectedError

UNKNOWN_WORD = "<unk>"  # a stretch of an alignment in which words are spoken that the aligner could not spell
WORD = pa.struct(
    [
        ("word", pa.string()),  # normalised, or UNKNOWN_WORD
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("score", pa.float64()),  # log-probability a phoneme; null where the aligner has none
        ("trusted", pa.bool_()),  # false: the aligner had no pronunciation for the word or its neighbour
    ]
)

CORPUS = pa.schema(
    [
        ("segment_id", pa.string()),
        ("recording_id", pa.string()),
        ("speaker_id", pa.string()),
        ("audio_path", pa.string()),  # absolute
        ("audio_row", pa.int64()),  # where audio_path is a Parquet or Arrow file that packs one recording a row
        ("channel", pa.int32()),  # from 0; null: all, averaged
        ("offset_s", pa.float64()),  # of the segment, from the recording's start
        ("duration_s", pa.float64()),
        ("text", pa.string()),  # normalised: words separated by one space
        ("language", pa.string()),
        ("split", pa.string()),  # the corpus's own split, or null
    ]
)
ALIGNMENTS = pa.schema(
    [
        ("segment_id", pa.string()),
        ("aligner", pa.string()),
        ("status", pa.string()),  # aligned | words_differ (by no more than align.max_differing_words)
        ("quality", pa.float64()),  # log-probability a phoneme, of the whole segment; null where it is not scored
        ("words", pa.list_(WORD)),  # start_s, end_s from the segment's start
    ]
)
CHUNKS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("segment_id", pa.string()),
        ("recording_id", pa.string()),
        ("speaker_id", pa.string()),
        ("term", pa.string()),  # the surface heard (main term or alias); null for a no-term chunk
        ("main_term", pa.string()),
        ("has_term", pa.bool_()),
        ("other_terms", pa.list_(pa.string())),  # further main terms heard in the chunk
        ("touched_terms", pa.list_(pa.string())),  # main terms of which any part lies in the chunk, nested ones too
        ("text", pa.string()),  # the aligned words that lie inside the chunk
        ("language", pa.string()),
        ("start_s", pa.float64()),  # of the chunk, from the segment's start; so are the next three
        ("end_s", pa.float64()),
        ("term_start_s", pa.float64()),
        ("term_end_s", pa.float64()),
        ("sample_rate", pa.int32()),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),  # FLAC; as `datasets` reads it
    ]
)
SPLITS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("shard", pa.string()),
        ("segment_id", pa.string()),
        ("recording_id", pa.string()),
        ("speaker_id", pa.string()),
        ("term", pa.string()),
        ("main_term", pa.string()),
        ("has_term", pa.bool_()),
        ("other_terms", pa.list_(pa.string())),
        ("seen_term", pa.bool_()),  # is the main term heard in a chunk of train? null for a no-term chunk
        ("text", pa.string()),
        ("duration_s", pa.float64()),  # of the chunk
    ]
)
FEATURES = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("n_frames", pa.int32()),
        ("frames", pa.binary()),  # float16, little-endian, [n_frames, dim] row by row
    ]
)
TRANSCRIPTS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("text", pa.string()),  # as the recogniser writes it, with case and punctuation
        ("seconds", pa.float64()),  # of wall clock: an equal share of what its batch took
    ]
)
TERMS = pa.schema(
    [
        ("row", pa.int64()),
        ("surface", pa.string()),
        ("main_term", pa.string()),
        ("units", pa.list_(pa.int16())),  # how the surface is said, where the retriever aligns; else null
    ]
)
BACKGROUND = pa.schema(
    [
        ("word", pa.string()),
        ("share", pa.float64()),  # of running text
        ("units", pa.list_(pa.int16())),  # a way to say it
    ]
)
ANSWERS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("text", pa.string()),  # as the model writes it
        ("finished", pa.bool_()),  # false: max_new_tokens came before the end
        ("seconds", pa.float64()),  # of wall clock: an equal share of what its batch took
    ]
)
ANSWER_PREDICTIONS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("split", pa.string()),
        ("speaker_id", pa.string()),
        ("seen_speaker", pa.bool_()),  # is the speaker heard in train?
        ("has_term", pa.bool_()),
        ("main_term", pa.string()),
        ("seen_term", pa.bool_()),
        ("text", pa.string()),  # the words inside the chunk
        ("answer", pa.string()),  # as the model wrote it
        ("finished", pa.bool_()),  # false: cut off before its end
        ("said_terms", pa.list_(pa.string())),  # main terms found in the answer, by name
        ("no_terms", pa.list_(pa.string())),  # what else it lists
        ("rejected", pa.bool_()),
    ]
)
PREDICTIONS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("split", pa.string()),
        ("speaker_id", pa.string()),
        ("seen_speaker", pa.bool_()),  # is the speaker heard in train?
        ("has_term", pa.bool_()),
        ("main_term", pa.string()),
        ("seen_term", pa.bool_()),
        ("rank", pa.int64()),  # of the spoken main term, from 1; null for a no-term chunk
        ("top_terms", pa.list_(pa.string())),  # best first
        ("top_scores", pa.list_(pa.float64())),
    ]
)
RANKINGS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("speaker_id", pa.string()),
        ("top_terms", pa.list_(pa.string())),  # main terms, best first
        ("top_scores", pa.list_(pa.float64())),
    ]
)

_COUNTS_KEY = b"earmark_counts"


@cache
def _left_behind(folder: Path) -> dict[str, list[Path]]:
    """Temporary files in `folder` by the name they were to get. Looked up once: a stage may write thousands there."""
    found: dict[str, list[Path]] = {}
    for path in folder.glob(".*.tmp"):
        found.setdefault(path.name[1:].removesuffix(".tmp").rpartition(".")[0], []).append(path)
    return found


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    What an earlier, killed writer of the same path left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in _left_behind(path.parent.resolve()).pop(path.name, []):
        stale.unlink(missing_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        _share([temporary])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends without an error.

    What an earlier, killed writer of the same folder left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(stale)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        _share(file for file in temporary.rglob("*") if file.is_file())
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share(files: Iterable[Path]) -> None:
    """Give files the permissions of any new file: safetensors makes them readable to their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, atomically; return the number of lines."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def rejected_path(path: Path) -> Path:
    """`x.parquet` -> `x.rejected.jsonl`, the file that holds what a stage dropped from `x`."""
    return path.with_name(path.stem + ".rejected.jsonl")


class RejectedRows:
    """Counts the rows a stage took in and kept, and collects the ones it rejected.

    `close(path)` checks that kept + rejected = input and that the rejected fraction is tolerable. It writes
    `x.rejected.jsonl` ({id, reason, detail} a line) beside `path` first: a failed stage can be looked into. Until then
    the rows wait in an unnamed file, not in memory.
    """

    def __init__(self, unit: str, max_rejected_fraction: float):
        self.unit = unit
        self.max_rejected_fraction = max_rejected_fraction
        self.input = 0
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # reason -> its first row, in words
        # A lone surrogate becomes \udXXX, which is how JSON writes it.
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (closed by `close`)

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    def reject(self, row_id: str, reason: str, detail: str) -> None:
        """Record one dropped row: `reason` is a short fixed word, `detail` says where and what."""
        self._rows.write(json.dumps({"id": row_id, "reason": reason, "detail": detail}, ensure_ascii=False) + "\n")
        self.reasons[reason] += 1
        self._first.setdefault(reason, f"{row_id}: {detail}")

    def counts(self) -> dict[str, Any]:
        """{unit, input, kept, rejected, reasons: {reason: n}}."""
        return {
            "unit": self.unit,
            "input": self.input,
            "kept": self.kept,
            "rejected": self.rejected,
            "reasons": dict(sorted(self.reasons.items())),
        }

    def close(self, path: Path) -> None:
        """Write the rejected rows beside `path`, then raise if they do not add up or are too many."""
        self._rows.seek(0)
        with atomic_path(rejected_path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
            shutil.copyfileobj(self._rows, file)
        self._rows.close()
        if self.kept + self.rejected != self.input:
            raise AssertionError(
                f"{path}: {self.kept} kept + {self.rejected} rejected is not {self.input} {self.unit} read"
            )
        if self.input and self.rejected > self.max_rejected_fraction * self.input:
            reason, count = self.reasons.most_common(1)[0]
            raise TooManyRejectedError(
                f"{self.rejected} of {self.input} {self.unit} were rejected, more than max_rejected_fraction "
                f"({self.max_rejected_fraction}) allows. Most often: {reason} ({count}), for instance "
                f"{self._first[reason]}. All are in {rejected_path(path)}; mend the input, or raise "
                "max_rejected_fraction if you accept this."
            )


class StageTable:
    """Streams one Parquet artifact and its rejected rows.

    >>> with StageTable(path, CORPUS, unit="segments", max_rejected_fraction=0.1) as table:
    ...     table.rejected.input += 1
    ...     table.keep({...})  # or table.reject(row_id, reason, detail)

    Rows are flushed in groups of `rows_per_group`, so memory does not grow with the table.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, *, unit: str, max_rejected_fraction: float, rows_per_group: int = 4096
    ):
        self.path = path
        self.schema = schema
        self.rejected = RejectedRows(unit, max_rejected_fraction)
        self.rows_per_group = rows_per_group
        self._pending: list[dict[str, Any]] = []

    def keep(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rejected.kept += 1
        if len(self._pending) >= self.rows_per_group:
            self._flush()

    def keep_table(self, rows: pa.Table) -> None:
        """Keep many rows at once, after those kept before."""
        self._flush()
        self._writer.write_table(rows, row_group_size=self.rows_per_group)
        self.rejected.kept += rows.num_rows

    def reject(self, row_id: str, reason: str, detail: str) -> None:
        self.rejected.reject(row_id, reason, detail)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self.schema))
            self._pending = []

    def __enter__(self) -> Self:
        self._atomic = atomic_path(self.path)
        self._writer = pq.ParquetWriter(self._atomic.__enter__(), self.schema, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self.rejected.close(self.path)
                counts = json.dumps(self.rejected.counts()).encode()
                self._writer.add_key_value_metadata({_COUNTS_KEY: counts})
        except BaseException as failure:
            self._writer.close()
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._writer.close()
        self._atomic.__exit__(kind, error, trace)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole table as zstd Parquet, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet artifact; InputError if it is missing or not Parquet."""
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run the stage that writes it") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file ({error}); delete it and run its stage again") from None


def iterate_rows(path: Path, batch_size: int = 256, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream a Parquet artifact row by row."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=batch_size, columns=columns):
            yield from batch.to_pylist()


def table_counts(path: Path) -> dict[str, Any]:
    """The counts a `StageTable` left in its artifact: {unit, input, kept, rejected, reasons}."""
    metadata = pq.read_metadata(path).metadata or {}
    if _COUNTS_KEY not in metadata:
        raise InputError(f"{path}: carries no row counts; it was not written by this version of Earmark")
    return json.loads(metadata[_COUNTS_KEY])
