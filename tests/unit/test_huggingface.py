import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from earmark.audio import AudioSource, read_audio
from earmark.corpus.readers import huggingface, read_corpus
from earmark.corpus.records import BadEntry, Entry, Segment
from earmark.errors import InputError

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def quiet_datasets():
    datasets.disable_progress_bars()


def tone(number):
    return np.round(np.sin(np.arange(1600 + number) / (5 + number)) * 2**14) / 2**15


def wav(number):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(number), 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def rows(count, first=0):
    return [
        {"id": f"s{n}", "audio": {"bytes": wav(n), "path": f"s{n}.wav"}, "text": f"Hello number {n}"}
        for n in range(first, first + count)
    ]


def dataset(rows):
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))


def table(count=3, **columns):
    """A table of `count` rows; a column given as None is left out."""
    plain = {
        "id": pa.array([f"s{n}" for n in range(count)]),
        "audio": pa.array([{"bytes": b"x", "path": f"{n}.wav"} for n in range(count)], AUDIO),
        "text": pa.array([f"hello {n}" for n in range(count)]),
    }
    return pa.table({name: column for name, column in (plain | columns).items() if column is not None})


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def read(manifest, **columns):
    return list(huggingface.read(manifest, columns=columns))


def segments(manifest):
    return list(read_corpus("huggingface", manifest, audio_root=None, columns={}, subset=None, language="en"))


def assert_heard(rows, numbers):
    for row, number in zip(rows, numbers, strict=True):
        samples = read_audio(AudioSource(Path(row.audio_path), row.audio_row, row.channel))
        np.testing.assert_array_equal(samples, tone(number).astype(np.float32))


def test_a_saved_dataset_is_read_in_the_order_of_its_files(tmp_path):
    dataset(rows(10)).save_to_disk(tmp_path / "saved", num_shards=3)
    found = segments(tmp_path / "saved")
    assert [(row.segment_id, row.recording_id, row.text) for row in found] == [
        (f"s{n}", f"s{n}", f"hello number {n}") for n in range(10)
    ]
    assert [row.audio_row for row in found] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert found[4].audio_path == str(tmp_path / "saved/data-00001-of-00003.arrow")
    assert_heard(found, range(10))
    state = json.loads((tmp_path / "saved/state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "saved/state.json").write_text(json.dumps(state))
    assert [row.segment_id for row in segments(tmp_path / "saved")][:4] == ["s7", "s8", "s9", "s4"]


def test_a_selection_is_saved_and_read_as_selected(tmp_path):
    dataset(rows(6)).select([5, 2]).save_to_disk(tmp_path / "saved")
    found = segments(tmp_path / "saved")
    assert [row.segment_id for row in found] == ["s5", "s2"]
    assert_heard(found, [5, 2])


def test_the_keys_of_a_dataset_dict_are_the_splits(tmp_path):
    both = datasets.DatasetDict(train=dataset(rows(3)), test=dataset(rows(2, first=3)))
    both.save_to_disk(tmp_path / "saved")
    found = segments(tmp_path / "saved")
    assert [(row.segment_id, row.split) for row in found] == [
        ("s0", "train"), ("s1", "train"), ("s2", "train"), ("s3", "test"), ("s4", "test"),
    ]  # fmt: skip
    assert_heard(found, range(5))


def test_a_parquet_file_that_datasets_wrote_is_read(tmp_path):
    dataset(rows(4)).to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    found = segments(tmp_path / "validation-00000-of-00001.parquet")
    assert [(row.segment_id, row.split, row.audio_row) for row in found] == [
        (f"s{n}", "validation", n) for n in range(4)
    ]
    assert_heard(found, range(4))


def test_parquet_files_of_a_folder_are_read_with_the_splits_of_their_names(tmp_path):
    for name in (
        "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test.parquet",
        "more/dev.clean-00000-of-00001-0123456789abcdef.parquet", "more/other.parquet",
    ):  # fmt: skip
        write(tmp_path / name, table(1))
    assert [(Path(entry.audio).name[:8], entry.split) for entry in read(tmp_path)] == [
        ("test.par", "test"), ("train-00", "train"), ("train-00", "train"), ("dev.clea", "dev.clean"),
        ("other.pa", None),
    ]  # fmt: skip


def test_without_a_column_of_ids_a_segment_is_called_after_its_file_and_row(tmp_path):
    write(tmp_path / "one.parquet", table(2, id=None))
    write(tmp_path / "en/one.parquet", table(1, id=None))
    write(tmp_path / "de/one.parquet", table(1, id=None))
    found = segments(tmp_path)
    ids = [row.segment_id for row in found]
    assert [row.recording_id for row in found] == ids
    assert ids[2:] == ["one-00000000", "one-00000001"]
    assert len(set(ids)) == 4
    assert ids[0].startswith("de-one-") and ids[0].endswith("-00000000")
    assert [row.segment_id for row in segments(tmp_path / "one.parquet")] == ids[2:]


def test_the_columns_of_hub_data_sets_are_known_and_others_can_be_named(tmp_path):
    hub = table(1, text=None, sentence=["a"], client_id=["anna"], locale=["de"])
    [entry] = read(write(tmp_path / "hub.parquet", hub))
    assert (entry.text, entry.speaker_id, entry.language) == ("a", "anna", "de")
    odd = table(1, words=["b"], who=[17], audio=None, sound=pa.array([{"bytes": b"x", "path": None}], AUDIO))
    path = write(tmp_path / "odd.parquet", odd)
    [entry] = read(path, text="words", speaker_id="who", audio="sound")
    assert (entry.text, entry.speaker_id, entry.audio_row) == ("b", "17", 0)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_every_column_we_know_is_read(tmp_path, suffix):
    full = table(
        1, recording_id=["r1"], speaker=["anna"], offset_s=[1.5], duration_s=pa.array([2], pa.int32()), split=["dev"],
        language=pa.array(["English"]).dictionary_encode(), channel=[1],
    )  # fmt: skip
    path = write(tmp_path / f"full{suffix}", full)
    assert read(path) == [
        Entry(f"{path}, row 0", "s0", str(path), "hello 0", "r1", "anna", 1.5, "2", "English", "dev", "1", 0)
    ]


def test_class_labels_are_read_by_name(tmp_path):
    labels = datasets.ClassLabel(names=["en", "de"])
    data = dataset([row | {"language": n % 2} for n, row in enumerate(rows(3))]).cast_column("language", labels)
    data.to_parquet(tmp_path / "a.parquet")
    assert [entry.language for entry in read(tmp_path / "a.parquet")] == ["en", "de", "en"]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_row_without_bytes_is_read_from_its_path(tmp_path, suffix, statistics):
    audio = pa.array([{"bytes": b"x", "path": "in.wav"}, {"bytes": None, "path": "sub/out.wav"}], AUDIO)
    options = {"write_statistics": statistics} if suffix == ".parquet" else {}
    path = write(tmp_path / f"mixed{suffix}", table(2, audio=audio), **options)
    packed, beside = segments(path)
    assert (packed.audio_path, packed.audio_row, packed.recording_id) == (str(path), 0, "s0")
    assert (beside.audio_path, beside.audio_row) == (str(tmp_path / "sub/out.wav"), None)
    assert beside.recording_id.startswith("sub-out-")


@pytest.mark.parametrize(
    "audio",
    [
        pa.array(["a.wav"]),
        pa.array([{"path": "a.wav"}]),
        pa.array([{"bytes": None, "path": "a.wav"}]),
        pa.array([{"bytes": None, "path": "a.wav"}], AUDIO),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_paths_alone_are_read_from_the_manifests_folder(tmp_path, audio, suffix):
    [segment] = segments(write(tmp_path / f"paths{suffix}", table(1, audio=audio)))
    assert (segment.audio_path, segment.audio_row, segment.recording_id) == (str(tmp_path / "a.wav"), None, "a")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": pa.array(["a", None, "c"])}, "no_text"),
        ({"text": pa.array([b"a", b"Z\xfcrich", b"c"]).view(pa.string())}, "not_utf8"),
        ({"text": pa.array([b"a", b"Z\xfcrich", b"c"]).view(pa.string()).dictionary_encode()}, "not_utf8"),
        ({"text": pa.array(["a", " ", "c"])}, "no_text"),
        ({"id": pa.array(["s0", None, "s2"])}, "bad_id"),
        ({"id": pa.array(["s0", "../s1", "s2"])}, "bad_id"),
        (
            {"audio": pa.array([{"bytes": b"x", "path": None}, None, {"bytes": b"x", "path": None}], AUDIO)},
            "missing_audio",
        ),
        ({"audio": pa.array(["a.wav", None, "c.wav"])}, "missing_audio"),
        ({"audio": pa.array(["a.wav", "", "c.wav"])}, "missing_audio"),
        ({"duration_s": [1.0, -1.0, 1.0]}, "bad_time"),
        ({"offset_s": [1.0, float("nan"), 1.0]}, "bad_time"),
        ({"offset_s": ["1.0", "soon", "1.0"]}, "bad_time"),
        ({"channel": [0, -1, 0]}, "bad_channel"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_bad_row_is_rejected_with_its_number_and_the_others_are_read(tmp_path, suffix, columns, reason):
    path = write(tmp_path / f"bad{suffix}", table(3, **columns))
    first, bad, last = segments(path)
    assert isinstance(first, Segment) and isinstance(last, Segment)
    assert isinstance(bad, BadEntry)
    assert bad.reason == reason
    assert bad.detail.startswith(f"{path}, row 1: ")


@pytest.mark.parametrize(
    ("columns", "detail"),
    [
        ({"text": [1, 2, 3]}, "the column text is int64; expected text as text"),
        ({"text": [["a"], ["b"], ["c"]]}, "the column text is list"),
        ({"id": [1.0, 2.0, 3.0]}, "the column id is double; expected text or whole numbers as segment_id"),
        ({"duration_s": [True, False, True]}, "the column duration_s is bool; expected numbers"),
        ({"language": [1, 2, 3]}, "the column language is int64; expected text"),
        ({"audio": [b"x", b"y", b"z"]}, "the column audio is binary; expected a struct of bytes and path"),
        (
            {"audio": [{"array": [0.5], "sampling_rate": 16000}] * 3},
            r"expected a struct of bytes and path \(cast_column",
        ),
        ({"audio": [{"bytes": "x", "path": "y"}] * 3}, "expected a struct of bytes and path"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(tmp_path, columns, detail):
    with pytest.raises(InputError, match=rf"bad.parquet: .*{detail}"):
        read(write(tmp_path / "bad.parquet", table(3, **columns)))


@pytest.mark.parametrize(
    ("columns", "named", "detail"),
    [
        ({"text": None}, {}, "lacks the column text or txt or sentence or .*; it has: id, audio; name yours in corpus"),
        ({"audio": None}, {}, "lacks the column audio or .*; it has: id, text"),
        ({}, {"text": "words"}, "lacks the column words; it has: id, audio, text"),
        ({}, {"speaker_id": "who"}, "lacks the column who; it has"),
    ],
)
def test_a_missing_column_is_refused_with_the_columns_there_are(tmp_path, columns, named, detail):
    with pytest.raises(InputError, match=rf"bad.parquet: {detail}"):
        read(write(tmp_path / "bad.parquet", table(**columns)), **named)


def test_packed_audio_that_cannot_be_told_apart_is_refused(tmp_path):
    two = table(1, quiet=pa.array([{"bytes": b"x", "path": None}], AUDIO))
    path = write(tmp_path / "two.parquet", two)
    assert read(path)[0].audio_row == 0
    with pytest.raises(InputError, match="more than one column packs audio, and quiet is not called audio"):
        read(path, audio="quiet")


def test_a_column_that_stands_twice_is_refused(tmp_path):
    twice = table(1).append_column("text", pa.array(["b"]))
    with pytest.raises(InputError, match="has the column text more than once"):
        read(write(tmp_path / "twice.arrow", twice))


def test_a_file_without_rows_gives_none(tmp_path):
    assert read(write(tmp_path / "none.parquet", table(0))) == []
    assert read(write(tmp_path / "none.arrow", table(0))) == []


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kept", [0, 2, 200, -100, -8, -1])
def test_a_file_that_breaks_off_is_refused(tmp_path, suffix, kept):
    path = write(tmp_path / f"cut{suffix}", table(5))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"cut{suffix}: "):
        read(path)


def test_what_is_no_data_set_is_refused(tmp_path, write_wav):
    with pytest.raises(InputError, match=r"a.parquet: is neither a Parquet nor an Arrow file"):
        read(write_wav("a.wav").rename(tmp_path / "a.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no state.json or dataset_dict.json"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content", "detail"),
    [
        ("dataset_dict.json", '{"splits": ["tra', r"dataset_dict.json: not valid JSON"),
        ("dataset_dict.json", '{"splits": "train"}', r"dataset_dict.json: holds no list 'splits'"),
        ("dataset_dict.json", '{"splits": ["dev"]}', r"dev/state.json: cannot be read"),
        ("train/state.json", "[]", r"state.json: holds no list '_data_files'"),
        ("train/state.json", '{"_data_files": [3]}', r"state.json: _data_files is not a list of files"),
        ("train/state.json", '{"_data_files": [{"filename": "x.arrow"}]}', r"x.arrow: there is no such file"),
        ("train/state.json", '{"_data_files": [], "_indices_files": [{"filename": "i"}]}', r"call flatten_indices"),
    ],
)
def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path, name, content, detail):
    datasets.DatasetDict(train=dataset(rows(2))).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_text(content)
    with pytest.raises(InputError, match=detail):
        read(tmp_path / "saved")


def test_the_packed_audio_itself_is_not_read(tmp_path):
    path = write(tmp_path / "a.parquet", table(3, audio=pa.array([{"bytes": b"x" * 5000, "path": None}] * 3, AUDIO)),
                 compression="zstd", use_dictionary=False)  # fmt: skip
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert chunk.path_in_schema == "audio.bytes"
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size
    )
    path.write_bytes(content)
    assert [entry.audio_row for entry in read(path)] == [0, 1, 2]
