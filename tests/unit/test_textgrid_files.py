import gzip
import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earmark.alignment import textgrid_files, textgrid_sources
from earmark.alignment.textgrid_files import TEXTGRIDS, pack_textgrids
from earmark.artifacts import CORPUS, read_table, write_table
from earmark.errors import InputError

SEGMENTS = [  # segment_id, recording_id, speaker_id, shard
    ("a-1", "a", "anna", "0000"),
    ("a-2", "a", "anna", "0000"),
    ("b-1", "b", "bo", "0001"),
    ("c", "c", "bo", "0001"),
]


@pytest.fixture
def corpus(tmp_path):
    paths = {}
    for shard in ("0000", "0001"):
        rows = [
            {"segment_id": segment_id, "recording_id": recording_id, "speaker_id": speaker_id}
            for segment_id, recording_id, speaker_id, of in SEGMENTS
            if of == shard
        ]
        paths[shard] = tmp_path / f"corpus/{shard}.parquet"
        write_table(paths[shard], pa.Table.from_pylist(rows, schema=CORPUS))
    return paths


def put_in_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def put_in_tar(path, files):
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def put_in_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


SOURCES = {
    "grids": put_in_folder,
    "grids.tar": put_in_tar,
    "grids.TAR.GZ": put_in_tar,
    "grids.tgz": put_in_tar,
    "grids.zip": put_in_zip,
}


def packed(tmp_path, corpus, source):
    """{name: (shard, stem, kind, data)} and the rejected rows {name: (reason, detail)}."""
    shards = {name: tmp_path / f"textgrids/{name}.parquet" for name in corpus}
    pack_textgrids(source, corpus, shards, tmp_path / "textgrids.json")
    rows = {
        row["name"]: (name, row["stem"], row["kind"], row["data"])
        for name, path in shards.items()
        for row in read_table(path).to_pylist()
    }
    assert all(pq.read_schema(path).names == TEXTGRIDS.names for path in shards.values())
    lines = (tmp_path / "textgrids.rejected.jsonl").read_text().splitlines()
    rejected = {row["id"]: (row["reason"], row["detail"]) for row in map(json.loads, lines)}
    counts = json.loads((tmp_path / "textgrids.json").read_text())
    assert (counts["kept"], counts["rejected"]) == (len(rows), len(lines))
    return rows, rejected


@pytest.mark.parametrize("source", SOURCES)
def test_each_file_goes_to_the_shard_of_the_segment_or_recording_it_is_named_after(tmp_path, corpus, source):
    files = {
        "anna/a-1.TextGrid": b"1", "b.textgrid": b"2", "deep/down/c.TEXTGRID": b"3", "x/a-9.TextGrid": b"4",
        "a-2.lab": b"no", "README": b"no", "empty/a-2.TextGrid": b"",
    }  # fmt: skip
    SOURCES[source](tmp_path / source, files)
    rows, rejected = packed(tmp_path, corpus, tmp_path / source)
    assert rows == {
        "anna/a-1.TextGrid": ("0000", "a-1", "segment", b"1"),
        "b.textgrid": ("0001", "b", "recording", b"2"),
        "deep/down/c.TEXTGRID": ("0001", "c", "segment", b"3"),
        "empty/a-2.TextGrid": ("0000", "a-2", "segment", b""),
    }
    assert rejected == {"x/a-9.TextGrid": ("no_such_segment", "no segment or recording has the id 'a-9'")}


@pytest.mark.parametrize("source", ["grids", "grids.tar", "grids.zip"])
def test_of_two_files_for_one_id_that_in_the_speakers_folder_is_taken(tmp_path, corpus, source):
    files = {
        "zoe/a-1.TextGrid": b"other", "anna/old/a-1.TextGrid": b"own", "x/b-1.TextGrid": b"1", "y/b-1.TextGrid": b"2",
        "bo/c.TextGrid": b"3", "bo/again/c.TextGrid": b"4", "a-2.TextGrid": b"5",
    }  # fmt: skip
    SOURCES[source](tmp_path / source, files)
    rows, rejected = packed(tmp_path, corpus, tmp_path / source)
    assert {name: row[3] for name, row in rows.items()} == {"anna/old/a-1.TextGrid": b"own", "a-2.TextGrid": b"5"}
    assert {reason for reason, _ in rejected.values()} == {"ambiguous_textgrid"}
    assert sorted(rejected) == sorted(set(files) - set(rows))
    assert rejected["zoe/a-1.TextGrid"][1] == "another of this name lies in a folder named after the speaker"
    assert rejected["bo/c.TextGrid"][1] == "2 files have this name, and 2 of them the speaker's folder"


def test_many_files_make_many_row_groups_and_none_is_lost(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(textgrid_files, "ROW_GROUP_BYTES", 10)
    put_in_folder(tmp_path / "grids", {f"{stem}.TextGrid": stem.encode() * 2 for stem in ("a", "a-1", "a-2", "b-1")})
    rows, _ = packed(tmp_path, corpus, tmp_path / "grids")
    assert {row[1]: row[3] for row in rows.values()} == {s: s.encode() * 2 for s in ("a", "a-1", "a-2", "b-1")}
    assert pq.read_metadata(tmp_path / "textgrids/0000.parquet").num_row_groups == 2


def test_more_shards_than_may_be_open_take_more_passes_and_count_every_file_once(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(textgrid_files, "OPEN_SHARDS", 1)
    files = {"a-1.TextGrid": b"1", "b-1.TextGrid": b"2", "odd.TextGrid": b"3", "x/b-1.TextGrid": b"4"}
    put_in_folder(tmp_path / "grids", files)
    (tmp_path / "grids/a-2.TextGrid").mkdir()
    rows, rejected = packed(tmp_path, corpus, tmp_path / "grids")
    assert list(rows) == ["a-1.TextGrid"]
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "odd.TextGrid": "no_such_segment", "b-1.TextGrid": "ambiguous_textgrid", "x/b-1.TextGrid": "ambiguous_textgrid",
    }  # fmt: skip


def test_links_in_archives_are_rejected_and_names_are_no_paths(tmp_path, corpus):
    with tarfile.open(tmp_path / "grids.tar", "w") as archive:
        for name, kind in (("a-1.TextGrid", tarfile.SYMTYPE), ("a-2.TextGrid", tarfile.LNKTYPE),
                           ("b.TextGrid", tarfile.FIFOTYPE)):  # fmt: skip
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        member = tarfile.TarInfo("../../../b-1.TextGrid")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    before = sorted(tmp_path.rglob("*"))
    rows, rejected = packed(tmp_path, corpus, tmp_path / "grids.tar")
    assert rows == {"../../../b-1.TextGrid": ("0001", "b-1", "segment", b"x")}
    assert {name: reason for name, (reason, _) in rejected.items()} == dict.fromkeys(
        ("a-1.TextGrid", "a-2.TextGrid", "b.TextGrid"), "not_a_file"
    )
    made = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert made == {"textgrids", "textgrids.json", "textgrids.rejected.jsonl"}


def test_a_link_in_a_zip_is_rejected(tmp_path, corpus):
    with zipfile.ZipFile(tmp_path / "grids.zip", "w") as archive:
        link = zipfile.ZipInfo("a-1.TextGrid")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a-2.TextGrid", "x")
    rows, rejected = packed(tmp_path, corpus, tmp_path / "grids.zip")
    assert list(rows) == ["a-2.TextGrid"]
    assert rejected == {"a-1.TextGrid": ("not_a_file", "is a link or a device, not a file")}


@pytest.mark.parametrize("source", ["grids", "grids.tar", "grids.tgz", "grids.zip"])
def test_a_textgrid_that_is_too_large_is_rejected_unread(tmp_path, corpus, source, monkeypatch):
    monkeypatch.setattr(textgrid_sources, "MAX_BYTES", 1000)
    SOURCES[source](tmp_path / source, {"a-1.TextGrid": b"x" * 1001, "a-2.TextGrid": b"y" * 1000})
    rows, rejected = packed(tmp_path, corpus, tmp_path / source)
    assert list(rows) == ["a-2.TextGrid"]
    assert rejected == {"a-1.TextGrid": ("too_large", "has 1001 bytes; a TextGrid may have 1000")}


def test_names_that_are_not_utf8_are_kept_readable(tmp_path, corpus):
    put_in_tar(tmp_path / "grids.tar", {"caf\udce9/a-1.TextGrid": b"x", "b\udce9.TextGrid": b"y"})
    rows, rejected = packed(tmp_path, corpus, tmp_path / "grids.tar")
    assert list(rows) == ["caf\\udce9/a-1.TextGrid"]
    assert [name.encode(errors="backslashreplace") for name in rejected] == [b"b\\udce9.TextGrid"]


def test_a_corpus_of_which_no_textgrid_is_known_is_told_what_both_look_like(tmp_path, corpus):
    put_in_folder(tmp_path / "grids", {"utt1.TextGrid": b"", "utt2.TextGrid": b""})
    with pytest.raises(InputError) as caught:
        packed(tmp_path, corpus, tmp_path / "grids")
    for part in ("none of its 2 TextGrids", "utt1, utt2", "'a-1' (segment)", "'a' (recording)"):
        assert part in str(caught.value)


def test_a_source_without_textgrids_is_refused(tmp_path, corpus):
    put_in_zip(tmp_path / "grids.zip", {"a-1.lab": b""})
    with pytest.raises(InputError, match=r"holds no usable TextGrid \(0 were rejected\); set align\.textgrid\.path"):
        packed(tmp_path, corpus, tmp_path / "grids.zip")
    with pytest.raises(InputError, match=r"there is no such file or folder; set align\.textgrid\.path"):
        packed(tmp_path, corpus, tmp_path / "none")
    (tmp_path / "grids.rar").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a folder, \.tar, \.tar\.gz, \.tgz or \.zip"):
        packed(tmp_path, corpus, tmp_path / "grids.rar")


FILES = {f"s/{stem}.TextGrid": hashlib.shake_128(stem.encode()).digest(700) for stem in ("a-1", "a-2", "b-1", "c")}


@pytest.mark.parametrize("source", ["grids.tar", "grids.tgz", "grids.zip"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 0.75, 0.97, 0.995])
def test_an_archive_that_breaks_off_is_refused(tmp_path, corpus, source, share):
    path = tmp_path / source
    SOURCES[source](path, FILES)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) if source == "grids.tar" else len(data)
    path.write_bytes(data[: int(end * share)])
    with pytest.raises(InputError, match="not a whole archive"):
        packed(tmp_path, corpus, path)
    assert not list((tmp_path / "textgrids").glob("*.parquet"))


def test_a_tar_cut_between_two_members_is_refused(tmp_path, corpus):
    path = tmp_path / "grids.tar"
    put_in_tar(path, FILES)
    path.write_bytes(path.read_bytes()[: 2 * (512 + 1024)])
    with pytest.raises(InputError, match="between two members"):
        packed(tmp_path, corpus, path)


@pytest.mark.parametrize("source", ["grids.tar", "grids.tgz", "grids.zip"])
def test_a_damaged_archive_is_refused_or_read_and_never_a_traceback(tmp_path, corpus, source):
    path = tmp_path / source
    SOURCES[source](path, FILES)
    whole = path.read_bytes()
    chance = np.random.default_rng(7)
    for _ in range(150):
        data = bytearray(whole)
        for place in chance.integers(len(data), size=chance.integers(1, 6)):
            data[place] = chance.integers(256)
        path.write_bytes(data)
        try:
            for file in textgrid_sources.source_files(path):
                assert isinstance(file.data, bytes)
        except InputError as error:
            assert str(error).startswith(str(path))


def test_a_gzip_with_a_wrong_checksum_is_refused(tmp_path, corpus):
    put_in_tar(tmp_path / "grids.tar", FILES)
    data = bytearray(gzip.compress((tmp_path / "grids.tar").read_bytes()))
    data[-8] ^= 1
    (tmp_path / "grids.tgz").write_bytes(data)
    with pytest.raises(InputError, match="not a whole archive"):
        packed(tmp_path, corpus, tmp_path / "grids.tgz")
