import pytest

from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry, Segment
from earmark.errors import InputError


def read(folder, **options):
    settings = {"audio_root": None, "columns": {}, "subset": None, "language": "en"} | options
    return list(read_corpus("librispeech", folder, **settings))


def chapter(root, name, lines, audio=None, suffix=".flac"):
    """A chapter folder `speaker/chapter` below `root`; audio for every line unless `audio` names the files."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    speaker, number = name.split("/")[-2:]
    content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
    (folder / f"{speaker}-{number}.trans.txt").write_bytes(content)
    for identifier in [line.split()[0] for line in lines] if audio is None else audio:
        (folder / f"{identifier}{suffix}").touch()
    return folder


def test_a_line_of_a_transcript_becomes_a_segment(tmp_path):
    chapter(tmp_path, "dev-clean/84/121123", ["84-121123-0000 GO DO YOU HEAR"])
    assert read(tmp_path) == [
        Segment(
            segment_id="84-121123-0000", recording_id="84-121123-0000", speaker_id="84",
            audio_path=str(tmp_path / "dev-clean/84/121123/84-121123-0000.flac"), audio_row=None, channel=None,
            offset_s=0.0, duration_s=None, text="go do you hear", language="en", split="dev-clean",
            source=f"{tmp_path}/dev-clean/84/121123/84-121123.trans.txt:1", speaker_stated=True,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("top", ["LibriSpeech", "LibriSpeech/train-clean-100", "LibriSpeech/train-clean-100/84"])
def test_every_folder_above_the_chapters_will_do(tmp_path, top):
    chapter(tmp_path, "LibriSpeech/train-clean-100/84/121123", ["84-121123-0000 GO", "84-121123-0001 DO"])
    rows = read(tmp_path / top)
    assert [(row.segment_id, row.split) for row in rows] == [
        ("84-121123-0000", "train-clean-100"),
        ("84-121123-0001", "train-clean-100"),
    ]
    assert rows[0].audio_path == str(tmp_path / "LibriSpeech/train-clean-100/84/121123/84-121123-0000.flac")


def test_audio_may_lie_elsewhere_in_the_same_folders(tmp_path):
    chapter(tmp_path / "texts", "dev/84/1", ["84-1-0000 GO"])
    [row] = read(tmp_path / "texts", audio_root=tmp_path / "audio")
    assert row.audio_path == str(tmp_path / "audio/dev/84/1/84-1-0000.flac")


def test_subsets_speakers_and_chapters_come_in_order(tmp_path):
    for name in ("test/9/2", "dev/10/1", "dev/1/30", "dev/1/4"):
        speaker, number = name.split("/")[1:]
        chapter(tmp_path, name, [f"{speaker}-{number}-0000 GO"])
    assert [row.segment_id for row in read(tmp_path)] == ["1-30-0000", "1-4-0000", "10-1-0000", "9-2-0000"]


def test_a_mirror_in_wav_is_read(tmp_path):
    chapter(tmp_path, "dev/84/1", ["84_1_000007_000001 GO"], suffix=".wav")
    [row] = read(tmp_path)
    assert (row.audio_path, row.speaker_id, row.split) == (
        str(tmp_path / "dev/84/1/84_1_000007_000001.wav"), "84", "dev",
    )  # fmt: skip


def test_flac_is_preferred_where_an_utterance_has_both_forms(tmp_path):
    chapter(tmp_path, "dev/84/1", ["84-1-0000 GO"])
    chapter(tmp_path, "dev/84/1", ["84-1-0000 GO"], suffix=".wav")
    [row] = read(tmp_path)
    assert row.audio_path.endswith(".flac")


def test_a_folder_that_is_not_of_the_layout_names_no_split(tmp_path):
    folder = chapter(tmp_path, "my/files", ["84-1-0000 GO", "x DO"])
    first, second = read(folder)
    assert (first.speaker_id, first.split, first.speaker_stated) == ("84", None, True)
    assert not second.speaker_stated


def test_a_line_without_audio_and_audio_without_a_line_are_both_rejected(tmp_path):
    chapter(tmp_path, "dev/84/1", ["84-1-0000 GO", "84-1-0001 DO", "84-1-0003 HEAR"],
            audio=["84-1-0000", "84-1-0002", "84-1-0003"])  # fmt: skip
    rows = read(tmp_path)
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["84-1-0000", "84-1-0003"]
    missing, unspoken = [row for row in rows if isinstance(row, BadEntry)]
    assert (missing.id, missing.reason) == ("84-1-0001", "missing_audio")
    assert missing.detail.startswith(f"{tmp_path}/dev/84/1/84-1.trans.txt:2: ")
    assert (unspoken.id, unspoken.reason) == ("84-1-0002", "no_text")
    assert unspoken.detail.startswith(f"{tmp_path}/dev/84/1/84-1-0002.flac: ")


def test_audio_of_a_chapter_that_lost_its_transcript_is_rejected(tmp_path):
    chapter(tmp_path, "dev/84/1", ["84-1-0000 GO"])
    (chapter(tmp_path, "dev/84/2", ["84-2-0000 GO"]) / "84-2.trans.txt").unlink()
    assert [getattr(row, "reason", None) for row in read(tmp_path)] == [None, "no_text"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"84-1-00", "missing_audio"),
        (b"84-1-0001", "no_text"),
        (b"84-1-0001 ...", "no_text"),
        (b"84-1-0001 CAF\xc9", "not_utf8"),
        (b"../84-1-0001 GO", "missing_audio"),
        (b"84-1-0001 <NOISE>", "garbage_tag"),
    ],
)
def test_a_bad_line_is_rejected_with_its_number_and_the_rest_is_read(tmp_path, bad, reason):
    chapter(tmp_path, "dev/84/1", b"84-1-0000 GO\n" + bad + b"\n84-1-0002 DO\n",
            audio=["84-1-0000", "84-1-0001", "84-1-0002"])  # fmt: skip
    rows = read(tmp_path)
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["84-1-0000", "84-1-0002"]
    assert rows[1].reason == reason
    assert rows[1].detail.startswith(f"{tmp_path}/dev/84/1/84-1.trans.txt:2: ")


def test_a_truncated_transcript_loses_no_audio_silently(tmp_path):
    whole = "".join(f"84-1-{number:04d} GO DO YOU HEAR\n" for number in range(9)).encode()
    chapter(tmp_path, "dev/84/1", whole[:80], audio=[f"84-1-{number:04d}" for number in range(9)])
    rows = read(tmp_path)
    assert len([row for row in rows if isinstance(row, Segment)]) == 3
    assert {row.id for row in rows if isinstance(row, BadEntry) and row.reason == "no_text"} == {
        f"84-1-{number:04d}" for number in range(3, 9)
    }


def test_a_folder_without_transcripts_is_refused(tmp_path):
    (tmp_path / "dev/84/1").mkdir(parents=True)
    (tmp_path / "dev/84/1/84-1-0000.txt").touch()
    with pytest.raises(InputError, match=r"holds a \.trans\.txt file; set corpus\.manifest to a folder above"):
        read(tmp_path)


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    path = chapter(tmp_path, "dev/84/1", ["84-1-0000 GO"]) / "84-1.trans.txt"
    with pytest.raises(InputError, match="librispeech takes a folder"):
        read(path)


def test_folders_behind_links_are_read_once_even_in_a_circle(tmp_path):
    chapter(tmp_path / "disk", "84/1", ["84-1-0000 GO"])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "dev").symlink_to(tmp_path / "disk")
    (corpus / "same").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/84/circle").symlink_to(corpus)
    [row] = read(corpus)
    assert (row.segment_id, row.split) == ("84-1-0000", "dev")


def test_a_folder_whose_name_is_not_utf8_is_rejected(tmp_path):
    chapter(tmp_path, "d\udce9v/84/1", ["84-1-0000 GO"])
    [row] = read(tmp_path)
    assert (row.id, row.reason) == ("84-1-0000", "missing_audio")
