import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from earmark.audio import AudioSource, audio_info, read_audio
from earmark.errors import AudioError
from earmark.packed_audio import pack_of, packed_audio, row_groups

FORMATS = ("parquet", "stream", "file")


def encoded(samples, format="FLAC"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=format, subtype="PCM_16")
    return buffer.getvalue()


def table(recordings, column="audio", **more):
    rows = [None if audio is None else {"bytes": audio, "path": f"{row}.flac"} for row, audio in enumerate(recordings)]
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({column: pa.array(rows, type), **more})


def write(path, table, format="parquet", rows_per_group=4, **options):
    if format == "parquet":
        pq.write_table(table, path, row_group_size=rows_per_group, **options)
        return path
    opened = pa.ipc.new_stream if format == "stream" else pa.ipc.new_file
    with opened(str(path), table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows_per_group)
    return path


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_every_row_gives_its_own_bytes_in_any_order(tmp_path, format, order):
    recordings = [bytes([number]) * (number * 500) for number in range(30)]
    path = write(tmp_path / "packed", table(recordings), format, rows_per_group=7)
    rows = list(range(30))
    if order != "forwards":
        rows = rows[::-1] if order == "backwards" else np.random.default_rng(1).permutation(rows).tolist()
    assert [packed_audio(path, row) for row in rows] == [recordings[row] for row in rows]


def test_a_large_row_group_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("earmark.packed_audio.BATCH_BYTES", 10_000)
    recordings = [np.random.default_rng(number).bytes(3_000) for number in range(20)]
    path = write(tmp_path / "packed.parquet", table(recordings), rows_per_group=20)
    for row in (5, 6, 19, 0, 3, 4):
        assert packed_audio(path, row) == recordings[row]


@pytest.mark.parametrize("format", FORMATS)
def test_samples_come_back_as_they_were_packed(tmp_path, format):
    samples = [np.round(np.sin(np.arange(8000 + 1000 * n) / (5 + n)) * 2**14) / 2**15 for n in range(3)]
    path = write(
        tmp_path / "packed", table([encoded(samples[0]), encoded(samples[1], "WAV"), encoded(samples[2])]), format
    )
    for row in (2, 0, 1):
        np.testing.assert_array_equal(read_audio(AudioSource(path, row)), samples[row].astype(np.float32))
    assert audio_info(AudioSource(path, 1)).duration_s == 9000 / 16_000


def test_the_one_column_that_packs_audio_may_have_any_name(tmp_path):
    others = {"text": ["a"], "voice": [{"name": "anna"}]}
    assert packed_audio(write(tmp_path / "a.parquet", table([b"x"], "recording", **others)), 0) == b"x"
    two = table([b"x"], "recording").append_column("audio", table([b"y"])["audio"])
    assert packed_audio(write(tmp_path / "b.parquet", two), 0) == b"y"
    with pytest.raises(AudioError, match=r"c.parquet: has no audio column"):
        packed_audio(write(tmp_path / "c.parquet", pa.table({"text": ["a"]})), 0)


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = tmp_path / "packed.parquet"
    assert packed_audio(write(path, table([b"old"])), 0) == b"old"
    assert packed_audio(write(path, table([b"brand new"])), 0) == b"brand new"


@pytest.mark.parametrize("format", FORMATS)
def test_row_groups_are_known_without_reading_a_row(tmp_path, format):
    path = write(tmp_path / "packed", table([b"x"] * 10), format, rows_per_group=4)
    assert list(row_groups(path)) == [0, 4, 8, 10]
    assert [pack_of(path, row) for row in (0, 3, 4, 9)] == [0, 0, 1, 2]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_is_not_there_is_named(tmp_path, format, row):
    path = write(tmp_path / "packed", table([b"x"] * 3), format)
    with pytest.raises(AudioError, match=rf"packed: holds 3 rows, numbered from 0; there is no row {row}$"):
        packed_audio(path, row)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_without_bytes_is_named(tmp_path, format):
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.wav"}, None], type)
    path = write(tmp_path / "packed", pa.table({"audio": rows}), format)
    for row in (1, 2):
        with pytest.raises(AudioError, match=f"packed, row {row}: holds no audio bytes"):
            packed_audio(path, row)
    assert packed_audio(path, 0) == b"x"


@pytest.mark.parametrize("audio", [b"", b"not audio", encoded(np.zeros(100))[:30]])
def test_bytes_that_are_no_audio_are_named_by_their_row(tmp_path, audio):
    path = write(tmp_path / "packed.parquet", table([encoded(np.zeros(100)), audio]))
    with pytest.raises(AudioError, match=r"packed.parquet, row 1: "):
        read_audio(AudioSource(path, 1))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0, 3, 100, 5000, -1, -8, -20])
def test_a_file_that_breaks_off_is_refused(tmp_path, format, kept):
    path = write(tmp_path / "packed", table([b"x" * 1000] * 10), format)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AudioError, match=r"packed: "):
        packed_audio(path, 0)


def test_an_arrow_stream_cut_between_two_batches_is_refused(tmp_path):
    path = tmp_path / "packed"
    ends = []
    data = table([b"x" * 1000] * 8)
    with path.open("wb") as file, pa.ipc.new_stream(file, data.schema) as writer:
        for batch in data.to_batches(max_chunksize=4):
            writer.write_batch(batch)
            ends.append(file.tell())
    path.write_bytes(path.read_bytes()[: ends[0]])
    with pytest.raises(AudioError, match=r"packed: the Arrow file breaks off"):
        packed_audio(path, 0)


def test_what_is_no_packed_file_is_refused(tmp_path, write_wav):
    for path, why in (
        (write_wav("a.wav"), "is neither a Parquet nor an Arrow file"),
        (tmp_path / "none.parquet", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(AudioError, match=f"{path}: {why}"):
            packed_audio(path, 0)


def test_a_compressed_arrow_file_is_refused(tmp_path):
    options = {"options": pa.ipc.IpcWriteOptions(compression="zstd")}
    path = write(tmp_path / "packed", table([b"x" * 1000] * 10), "stream", **options)
    with pytest.raises(AudioError, match=r"packed: is a compressed Arrow file; save it uncompressed, or as Parquet"):
        packed_audio(path, 0)


def test_a_damaged_row_group_leaves_the_others_readable(tmp_path):
    recordings = [np.random.default_rng(number).bytes(1_000) for number in range(8)]
    path = write(tmp_path / "packed.parquet", table(recordings), compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 3000] = bytes(3000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"packed.parquet: cannot be read as Parquet or Arrow"):
        packed_audio(path, 5)
    with pytest.raises(AudioError, match=r"packed.parquet: cannot be read as Parquet or Arrow"):
        packed_audio(path, 5)
    assert packed_audio(path, 1) == recordings[1]
