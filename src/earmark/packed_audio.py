"""Audio packed many recordings to a file, one a row: Parquet, or the Arrow files that `datasets` saves."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from earmark.errors import AudioError

BATCH_BYTES = 8 * 2**20  # decoded from a Parquet file at a time, or one row where that is more
BATCH_ROWS = 8192
OPEN_FILES = 8  # kept ready between calls of packed_audio, each with one batch

ColumnName = tuple[str] | tuple[str, str]  # (column,) or (column, field of a struct)

_STREAM_START = b"\xff\xff\xff\xff"
_STREAM_END = _STREAM_START + bytes(4)
_BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


def packed_audio(path: Path, row: int) -> bytes:
    """The encoded audio (WAV, FLAC, ...) in row `row` of `path`, from its `audio_column`.

    Rows in rising order cost one pass over the file. In any other order an Arrow file costs no more, but each step back
    in a Parquet file decodes its row group again up to that row.

    AudioError if the file is missing, not whole, or neither Parquet nor Arrow; if there is no such row; if it has no
    bytes.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from None
    return _cursor(path, state.st_mtime_ns, state.st_size).audio(row)


def row_groups(path: Path) -> Sequence[int]:
    """The row each row group (Parquet) or record batch (Arrow) starts at, and after them the number of rows.

    No row is read. AudioError as for `packed_audio`.
    """
    return _row_groups(path)


def pack_of(path: Path, row: int) -> int:
    """Which of `row_groups` holds `row`: rows of one are cheapest read together."""
    return bisect_right(_row_groups(path), row) - 1


class PackedFile:
    """A Parquet or Arrow file (IPC, stream or file), read batch by batch.

    It is mapped into memory: what is not asked for is not read, and what was read is forgotten after each batch.
    AudioError if the file is missing, not whole, or neither Parquet nor Arrow.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._errors():
            with path.open("rb") as file:
                if not file.read(1):
                    raise AudioError(f"{path}: is empty; copy or save it again")
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._data = pa.py_buffer(self._mapped)
            self._parquet: pq.ParquetFile | None = None
            self._batches: list[pa.RecordBatch] = []
            if self._mapped[:4] == b"PAR1":
                self._parquet = pq.ParquetFile(pa.BufferReader(self._data))
                self.schema: pa.Schema = self._parquet.schema_arrow
                leaves = self._parquet.schema
                self._leaves = {leaves.column(index).path: index for index in range(len(leaves))}
            else:
                reader = self._arrow_reader()
                self.schema = reader.schema
                self._batches = list(self._mapped_batches(reader))
            for field in self.schema:
                (field.name, *field_names(field.type))  # raises where one is not UTF-8

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """The row each row group or record batch starts at, and after them the number of rows."""
        if self._parquet is None:
            rows = [batch.num_rows for batch in self._batches]
        else:
            metadata = self._parquet.metadata
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return tuple(accumulate(rows, initial=0))

    def columns(self, group: int, names: Sequence[ColumnName]) -> Iterator[tuple[int, list[pa.Array]]]:
        """(first row, an array per name) through one row group, batch by batch. Text comes as bytes, undecoded."""
        first = self.row_groups[group]
        batches = self._group_batches(group, names)
        while True:
            with self._errors():  # not around the yield, which may be left only when the interpreter ends
                if (batch := next(batches, None)) is None:
                    break
                batch.validate()
                arrays = [_column(batch, name) for name in names]
            yield first, arrays
            first += batch.num_rows
            self.forget()
        if first != self.row_groups[group + 1]:
            raise AudioError(f"{self.path}: row group {group} lacks rows; copy or save the file again")

    def forget(self) -> None:
        """Give back the memory of what was read; it stays readable."""
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def null_count(self, group: int, name: ColumnName) -> int | None:
        """How many rows of a row group lack a value, where the file says so without being read."""
        if self._parquet is None:
            return None
        counts = [chunk.statistics.null_count for chunk in self._chunks(group, [name]) if chunk.statistics]
        return counts[0] if counts else None

    def _group_batches(self, group: int, names: Sequence[ColumnName]) -> Iterator[pa.RecordBatch]:
        if self._parquet is None:
            yield self._batches[group]
            return
        group_bytes = sum(max(0, chunk.total_uncompressed_size) for chunk in self._chunks(group, names))
        rows = self.row_groups[group + 1] - self.row_groups[group]
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, group_bytes)))
        paths = [".".join(name) for name in names]
        yield from self._parquet.iter_batches(batch_rows, row_groups=[group], columns=paths, use_threads=False)

    def _chunks(self, group: int, names: Sequence[ColumnName]) -> Iterator[pq.ColumnChunkMetaData]:
        assert self._parquet is not None
        metadata = self._parquet.metadata.row_group(group)
        leaves = [self._leaves.get(".".join(name)) for name in names]
        yield from (metadata.column(leaf) for leaf in leaves if leaf is not None)

    def _arrow_reader(self) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        source = pa.BufferReader(self._data)
        if self._mapped[:6] == b"ARROW1":
            return pa.ipc.open_file(source)
        if self._mapped[:4] != _STREAM_START:
            raise AudioError(f"{self.path}: is neither a Parquet nor an Arrow file")
        if self._mapped[-8:] != _STREAM_END:  # Arrow takes a stream cut between two batches for a whole one
            raise AudioError(f"{self.path}: the Arrow file breaks off; copy or save it again")
        return pa.ipc.open_stream(source)

    def _mapped_batches(
        self, reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader
    ) -> Iterator[pa.RecordBatch]:
        """The record batches, each a view of the file; unpacking a compressed one would hold it in memory."""
        if isinstance(reader, pa.RecordBatchFileReader):
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        end = self._data.address + self._data.size
        for batch in batches:
            buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer and buffer.size]
            if any(not self._data.address <= buffer.address < end for buffer in buffers):
                raise AudioError(f"{self.path}: is a compressed Arrow file; save it uncompressed, or as Parquet")
            self.forget()  # a look at the head of a batch may map megabytes
            yield batch

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise AudioError(f"{self.path}: there is no such file") from None
        except _UNREADABLE as error:
            why = str(error).partition("\n")[0]
            raise AudioError(
                f"{self.path}: cannot be read as Parquet or Arrow ({why}); copy or save it again"
            ) from None


def audio_column(schema: pa.Schema) -> str | None:
    """The column that packs audio, a struct{bytes, path}: `audio`, or any other name where only one column is such."""
    names = [field.name for field in schema if "bytes" in field_names(field.type)]
    return "audio" if "audio" in names else names[0] if len(names) == 1 else None


def field_names(type: pa.DataType) -> list[str]:
    """The names of a struct's fields; none for any other type."""
    return [field.name for field in type] if pa.types.is_struct(type) else []


def _column(batch: pa.RecordBatch, name: ColumnName) -> pa.Array:
    array = batch.column(name[0])
    if len(name) == 2:
        array = pc.struct_field(array, name[1])
    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary)).dictionary_decode()
    return _as_bytes(array)


def _as_bytes(array: pa.Array) -> pa.Array:
    """`array`, its text as bytes, proven sound: offsets that lead out of a damaged file would end the process."""
    if type := _BYTES_OF.get(array.type):
        array = array.cast(type)
    array.validate(full=True)
    return array


class _Cursor:
    """The place in a file where the last recording was found."""

    def __init__(self, path: Path):
        self._file = PackedFile(path)
        name = audio_column(self._file.schema)
        if name is None:
            raise AudioError(f"{path}: has no audio column, which is a struct of bytes and path")
        self._bytes = (name, "bytes")
        self._group = -1
        self._first = 0  # row of the file that the held batch begins with
        self._held: pa.Array = pa.nulls(0)
        self._batches: Iterator[tuple[int, list[pa.Array]]] = iter(())

    def audio(self, row: int) -> bytes:
        starts = self._file.row_groups
        if not 0 <= row < starts[-1]:
            raise AudioError(f"{self._file.path}: holds {starts[-1]} rows, numbered from 0; there is no row {row}")
        group = bisect_right(starts, row) - 1
        if group != self._group or row < self._first:
            self._first, self._held = starts[group], pa.nulls(0)
            self._batches = self._file.columns(group, [self._bytes])
        self._group = -1  # an error uses the iterator up
        while row >= self._first + len(self._held):
            self._first, (self._held,) = next(self._batches)
        self._group = group
        audio = self._held[row - self._first].as_py()
        self._file.forget()
        if audio is None:
            raise AudioError(f"{self._file.path}, row {row}: holds no audio bytes")
        return audio


@lru_cache(maxsize=OPEN_FILES)
def _cursor(path: Path, modified_ns: int, size: int) -> _Cursor:
    return _Cursor(path)


@lru_cache(maxsize=4096)
def _row_groups(path: Path) -> tuple[int, ...]:
    return PackedFile(path).row_groups
