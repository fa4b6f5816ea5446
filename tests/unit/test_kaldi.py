import pytest

from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry, Segment
from earmark.errors import EarmarkError, InputError

WAV = "r1 /data/r1.flac\nr2 audio/my talk.wav\n"
SEGMENTS = "a-1 r1 0.50 2.75\na-2 r1 3 -1\nb-1 r2 1.00 2.00 1\n"
TEXT = "a-1 HELLO THERE\na-2 GOOD BYE\nb-1 YES\n"
SPEAKERS = "a-1 anna\na-2 anna\nb-1 ben\n"
FILES = {"wav.scp": WAV, "segments": SEGMENTS, "text": TEXT, "utt2spk": SPEAKERS}


def read(folder, files, **options):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = {"audio_root": None, "columns": {}, "subset": None, "language": "en"} | options
    return list(read_corpus("kaldi", folder, **settings))


def with_segments(folder, wav=WAV, **changes):
    return read(folder, FILES | {"wav.scp": wav} | changes)


def good(rows):
    return [row.segment_id for row in rows if isinstance(row, Segment)]


def bad(rows):
    return [(row.id, row.reason) for row in rows if isinstance(row, BadEntry)]


def test_utterances_of_long_recordings_become_segments(tmp_path):
    common = {"audio_row": None, "language": "en", "split": None, "speaker_stated": True}
    assert with_segments(tmp_path) == [
        Segment(
            segment_id="a-1", recording_id="r1", speaker_id="anna", audio_path="/data/r1.flac", channel=None,
            offset_s=0.5, duration_s=2.25, text="hello there", source=f"{tmp_path}/text:1", **common,
        ),
        Segment(
            segment_id="a-2", recording_id="r1", speaker_id="anna", audio_path="/data/r1.flac", channel=None,
            offset_s=3.0, duration_s=None, text="good bye", source=f"{tmp_path}/text:2", **common,
        ),
        Segment(
            segment_id="b-1", recording_id="r2", speaker_id="ben", audio_path=str(tmp_path / "audio/my talk.wav"),
            channel=1, offset_s=1.0, duration_s=1.0, text="yes", source=f"{tmp_path}/text:3", **common,
        ),
    ]  # fmt: skip


def test_without_segments_every_recording_is_an_utterance(tmp_path):
    [row] = read(tmp_path, {"wav.scp": "u1\tu1.wav\r\n", "text": "u1\tHELLO THERE \r\n"})
    assert (row.segment_id, row.recording_id, row.audio_path) == ("u1", "u1", str(tmp_path / "u1.wav"))
    assert (row.offset_s, row.duration_s, row.speaker_stated, row.text) == (0.0, None, False, "hello there")


def test_relative_paths_start_at_the_audio_root(tmp_path):
    [row] = read(tmp_path, {"wav.scp": "u1 u1.wav\n", "text": "u1 HELLO\n"}, audio_root=tmp_path / "s5")
    assert row.audio_path == str(tmp_path / "s5/u1.wav")


def test_files_are_joined_in_whatever_order_their_lines_stand(tmp_path):
    in_order = with_segments(tmp_path)
    upside_down = {
        name: "".join(reversed(content.splitlines(keepends=True))) for name, content in FILES.items() if name != "text"
    }
    assert with_segments(tmp_path, **upside_down) == in_order
    assert good(with_segments(tmp_path, text="b-1 YES\na-2 GOOD BYE\na-1 HELLO THERE\n")) == ["b-1", "a-2", "a-1"]


@pytest.mark.parametrize(
    "value", ["sph2pipe -f wav r1.sph |", "cat r1.wav|", "| tee r1.wav", "touch {folder}/ran; cat r1.wav |"]
)
def test_a_command_is_never_run_and_rejects_each_of_its_utterances(tmp_path, value):
    rows = with_segments(tmp_path, wav=f"r1 {value.format(folder=tmp_path)}\nr2 r2.wav\n")
    assert (good(rows), bad(rows)) == (["b-1"], [("a-1", "command_pipe"), ("a-2", "command_pipe")])
    assert rows[0].detail.startswith(f"{tmp_path}/segments:1: ")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["raw.ark:1234", "raw.ark:1234[0:99]", "-"])
def test_audio_that_is_no_file_of_its_own_is_rejected(tmp_path, value):
    rows = read(tmp_path, {"wav.scp": f"u1 {value}\nu2 u2.wav\n", "text": "u1 HELLO\nu2 HELLO\n"})
    assert (good(rows), bad(rows)) == (["u2"], [("u1", "not_a_file")])


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ("-0.5 2.0", "bad_time"),
        ("2.0 1.0", "bad_time"),
        ("2.0 2.0", "bad_time"),
        ("2.0 -2", "bad_time"),
        ("-1 -1", "bad_time"),
        ("start 2.0", "bad_time"),
        ("0 nan", "bad_time"),
        ("0 inf", "bad_time"),
        ("0.0 1.0 left", "bad_channel"),
        ("0.0", "broken_line"),
        ("0.0 1.0 1 2", "broken_line"),
    ],
)
def test_a_bad_line_of_segments_is_rejected_with_its_number(tmp_path, times, reason):
    rows = with_segments(tmp_path, segments=SEGMENTS.replace("r1 3 -1", f"r1 {times}"))
    assert good(rows) == ["a-1", "b-1"]
    [row] = [row for row in rows if isinstance(row, BadEntry) and row.reason == reason]
    # Negative starts and channels are known to be wrong only where the whole entry is looked at.
    assert row.detail.startswith((f"{tmp_path}/segments:2: ", f"{tmp_path}/text:2: "))


def test_an_utterance_without_a_segment_is_rejected_where_it_stands(tmp_path):
    rows = with_segments(tmp_path, segments=SEGMENTS.replace("a-2", "a-3"))
    assert (good(rows), bad(rows)) == (["a-1", "b-1"], [("a-2", "missing_audio"), ("a-3", "no_text")])
    assert rows[1].detail.startswith(f"{tmp_path}/text:2: ")
    assert rows[3].detail.startswith(f"{tmp_path}/segments:2: ")


def test_a_recording_without_audio_and_one_without_utterances_are_rejected(tmp_path):
    rows = with_segments(tmp_path, wav=WAV.replace("r2", "r3"))
    assert (good(rows), bad(rows)) == (["a-1", "a-2"], [("b-1", "missing_audio"), ("r3", "no_text")])
    assert rows[2].detail.startswith(f"{tmp_path}/segments:3: ")
    assert rows[3].detail.startswith(f"{tmp_path}/wav.scp:2: ")


def test_without_segments_what_one_file_lacks_is_rejected_too(tmp_path):
    rows = read(tmp_path, {"wav.scp": "u1 u1.wav\nu2 u2.wav\n", "text": "u1 HELLO\nu3 HELLO\n"})
    assert (good(rows), bad(rows)) == (["u1"], [("u3", "missing_audio"), ("u2", "no_text")])


@pytest.mark.parametrize("name", FILES)
def test_a_line_that_is_not_utf8_is_rejected_with_its_number(tmp_path, name):
    rows = with_segments(tmp_path, **{name: FILES[name].encode() + b"b-2 caf\xe9 0 1\n"})
    assert good(rows) == ["a-1", "a-2", "b-1"]
    [row] = [row for row in rows if isinstance(row, BadEntry)]
    assert row.reason == "not_utf8"
    assert row.detail.startswith(f"{tmp_path}/{name}:{len(FILES[name].splitlines()) + 1}: ")


@pytest.mark.parametrize(
    ("name", "line"), [("wav.scp", "r9"), ("segments", "b-9 r1"), ("utt2spk", "b-1 ben x"), ("utt2spk", "b")]
)
def test_a_line_of_too_few_or_many_columns_is_rejected(tmp_path, name, line):
    rows = with_segments(tmp_path, **{name: f"{line}\n{FILES[name]}"})
    assert good(rows) == ["a-1", "a-2", "b-1"]
    assert bad(rows) == [("", "broken_line")]


def test_a_text_that_breaks_off_loses_no_utterance_silently(tmp_path):
    rows = with_segments(tmp_path, text=TEXT[:-7])
    assert (good(rows), bad(rows)) == (["a-1", "a-2"], [("b", "missing_audio"), ("b-1", "no_text")])


def test_an_utterance_without_words_is_rejected(tmp_path):
    rows = with_segments(tmp_path, text=TEXT.replace(" YES", ""))
    assert bad(rows) == [("b-1", "no_text")]


@pytest.mark.parametrize(
    ("name", "again"),
    [("wav.scp", "r1 other.wav"), ("segments", "a-1 r2 0 1"), ("text", "a-1 OTHER"), ("utt2spk", "a-1 ben")],
)
def test_of_two_lines_with_one_id_the_first_counts_and_the_other_is_rejected(tmp_path, name, again):
    whole = with_segments(tmp_path)
    rows = with_segments(tmp_path, **{name: f"{FILES[name]}{again}\n"})
    assert [row for row in rows if isinstance(row, Segment)] == whole
    assert bad(rows) == [(again.split()[0], "duplicate_id")]
    [row] = [row for row in rows if isinstance(row, BadEntry)]
    assert row.detail == f"{tmp_path}/{name}:{len(FILES[name].splitlines()) + 1}: also on line 1"


@pytest.mark.parametrize("lacking", ["wav.scp", "text"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, lacking):
    files = {name: "u1 x\n" for name in ("wav.scp", "text") if name != lacking}
    with pytest.raises(
        InputError, match=f"{lacking}: there is no such file; set corpus.manifest to a Kaldi data folder"
    ):
        read(tmp_path, files)


def test_a_full_disk_for_the_temporary_tables_is_reported_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.setattr("earmark.corpus.disk_table._PRAGMAS", ("max_page_count=8",))
    with pytest.raises(EarmarkError, match=r"database or disk is full.*set TMPDIR to a folder"):
        read(tmp_path, {"wav.scp": "u1 u1.wav\n", "text": "".join(f"u{n} HELLO THERE\n" for n in range(20_000))})
