import json

import pytest

from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry, Segment, recording_id_of
from earmark.errors import InputError

HEADER = "id\taudio\tn_frames\tspeaker\tsrc_text\tsrc_lang\n"


def read(tmp_path, content, name="GigaSpeech.json", **options):
    path = tmp_path / name
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    settings = {"audio_root": None, "columns": {}, "subset": None, "language": "en"} | options
    return list(read_corpus("gigaspeech", path, **settings))


def segment(**changes):
    row = {
        "sid": "POD0000000001_S0000008",
        "speaker": "N/A",
        "begin_time": 159.0,
        "end_time": 167.52,
        "text_raw": "",
        "text_tn": "YOU WALK THROUGH THE DOOR <COMMA> YOU SEE THE RED CARPETING <PERIOD>",
        "subsets": ["{XL}"],
    } | changes
    return {name: value for name, value in row.items() if value is not ...}


def audio(*segments, **changes):
    row = {
        "title": "Check Cashing Stores",
        "path": "audio/podcast/P0001/POD0000000001.opus",
        "aid": "POD0000000001",
        "channels": 1,
        "sample_rate": 16000,
        "duration": 629.931,
        "speaker": "N/A",
        "subsets": ["{XL}"],
        "segments": list(segments),
    } | changes
    return {name: value for name, value in row.items() if value is not ...}


def corpus(*audios):
    return {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": list(audios)}


def tsv_line(**changes):
    row = {
        "id": "s1",
        "audio": "audio/POD1.opus:16000:24000",
        "n_frames": "24000",
        "speaker": "N/A",
        "src_text": "HELLO",
        "src_lang": "en",
    } | changes
    return "\t".join(row.values()) + "\n"


def test_a_segment_of_the_json_becomes_a_segment(tmp_path):
    assert read(tmp_path, corpus(audio(segment()))) == [
        Segment(
            segment_id="POD0000000001_S0000008", recording_id="POD0000000001", speaker_id="POD0000000001",
            audio_path=str(tmp_path / "audio/podcast/P0001/POD0000000001.opus"), audio_row=None, channel=None,
            offset_s=159.0, duration_s=8.52, text="you walk through the door you see the red carpeting",
            language="en", split="train", source=f"{tmp_path}/GigaSpeech.json: audios[0].segments[0]",
            speaker_stated=False,
        )
    ]  # fmt: skip


def test_audio_paths_start_at_the_audio_root(tmp_path):
    [row] = read(tmp_path, corpus(audio(segment())), audio_root=tmp_path / "elsewhere")
    assert row.audio_path == str(tmp_path / "elsewhere/audio/podcast/P0001/POD0000000001.opus")


@pytest.mark.parametrize(
    ("of_segment", "of_audio", "expected"),
    [("spk1", "N/A", "spk1"), ("N/A", "spk2", "spk2"), ("spk1", "spk2", "spk1"), (..., ..., None), (None, "N/A", None)],
)
def test_a_speaker_may_be_stated_for_the_segment_or_for_the_audio(tmp_path, of_segment, of_audio, expected):
    [row] = read(tmp_path, corpus(audio(segment(speaker=of_segment), speaker=of_audio)))
    assert (row.speaker_id, row.speaker_stated) == (expected or "POD0000000001", expected is not None)


@pytest.mark.parametrize(
    ("subsets", "split"),
    [(["{DEV}"], "dev"), (["{TEST}"], "test"), (["{XS}", "{S}", "{XL}"], "train"), ([], "train")],
)
def test_the_evaluation_subsets_are_splits_of_their_own(tmp_path, subsets, split):
    [row] = read(tmp_path, corpus(audio(segment(subsets=subsets))))
    assert row.split == split


@pytest.mark.parametrize("spelling", ["XS", "{XS}", "xs"])
def test_a_subset_keeps_its_segments_alone(tmp_path, spelling):
    rows = read(
        tmp_path,
        corpus(
            audio(segment(sid="a", subsets=["{XL}"]), segment(sid="b", subsets=["{XL}", "{XS}"])),
            audio(segment(sid="c", subsets=["{XS}"]), segment(sid="d", subsets=["{DEV}"], begin_time="?")),
        ),
        subset=spelling,
    )
    assert [row.segment_id for row in rows] == ["b", "c"]


def test_a_subset_that_does_not_occur_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(InputError, match=r"no segment of the subset S; set corpus\.subset to one of DEV, XL, XS"):
        read(tmp_path, corpus(audio(segment(subsets=["{XL}", "{XS}"]), segment(subsets=["{DEV}"]))), subset="S")


def test_a_segment_of_no_speech_is_rejected_with_its_tag(tmp_path):
    [row] = read(tmp_path, corpus(audio(segment(text_tn="<MUSIC>"))))
    assert (row.id, row.reason) == ("POD0000000001_S0000008", "garbage_tag")
    assert "<MUSIC>" in row.detail


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sid": ...}, "broken_line"),
        ({"sid": None}, "broken_line"),
        ({"sid": ["x"]}, "broken_line"),
        ({"sid": "a/b"}, "bad_id"),
        ({"begin_time": ...}, "broken_line"),
        ({"begin_time": True}, "broken_line"),
        ({"begin_time": {"s": 1}}, "broken_line"),
        ({"begin_time": "soon"}, "bad_time"),
        ({"begin_time": -1.0}, "bad_time"),
        ({"begin_time": 1e400}, "bad_time"),
        ({"begin_time": 167.52}, "bad_time"),
        ({"begin_time": 200.0}, "bad_time"),
        ({"end_time": ...}, "broken_line"),
        ({"text_tn": ...}, "broken_line"),
        ({"text_tn": ["HELLO"]}, "broken_line"),
        ({"text_tn": "<PERIOD>"}, "no_text"),
        ({"subsets": ...}, "broken_line"),
        ({"subsets": "{XL}"}, "broken_line"),
        ({"subsets": [1]}, "broken_line"),
        ({"speaker": ["a"]}, "broken_line"),
    ],
)
def test_a_bad_segment_is_rejected_with_its_place_and_the_rest_is_read(tmp_path, changes, reason):
    content = json.dumps(corpus(audio(segment(sid="first"), segment(**changes), segment(sid="last"))))
    rows = read(tmp_path, content.replace("Infinity", "1e400"))
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["first", "last"]
    assert (rows[1].reason, rows[1].id) == (
        reason, changes["sid"] if reason == "bad_id" else "" if "sid" in changes else "POD0000000001_S0000008"
    )  # fmt: skip
    assert rows[1].detail.startswith(f"{tmp_path}/GigaSpeech.json: audios[0].segments[1]: ")


@pytest.mark.parametrize("changes", [{"aid": ...}, {"path": ...}, {"path": 1.5j}, {"aid": {}}])
def test_damage_of_an_audio_rejects_each_of_its_segments(tmp_path, changes):
    broken = audio(segment(sid="a"), segment(sid="b"), **{name: [] if value == 1.5j else value
                                                          for name, value in changes.items()})  # fmt: skip
    rows = read(tmp_path, corpus(broken, audio(segment(sid="c"))))
    assert [(row.id, row.reason) for row in rows[:2]] == [("a", "broken_line"), ("b", "broken_line")]
    assert rows[2].segment_id == "c"


@pytest.mark.parametrize("broken", [17, "audio", None, [], audio(segments=...), audio(segments={"sid": "a"})])
def test_an_audio_without_segments_to_speak_of_is_rejected_once(tmp_path, broken):
    rows = read(tmp_path, corpus(broken, audio(segment())))
    assert [type(row) for row in rows] == [BadEntry, Segment]
    assert rows[0].detail.startswith(f"{tmp_path}/GigaSpeech.json: audios[0]: ")


def test_something_else_in_the_place_of_a_segment_is_rejected(tmp_path):
    rows = read(tmp_path, corpus(audio("text", segment())))
    assert [type(row) for row in rows] == [BadEntry, Segment]


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_json_that_breaks_off_is_refused_with_how_far_it_is_whole(tmp_path, kept):
    whole = json.dumps(corpus(*[audio(segment(sid=f"s{number}")) for number in range(20)]))
    with pytest.raises(
        InputError, match=r"GigaSpeech\.json: not whole JSON from character \d+ on .*copy or make it again"
    ):
        read(tmp_path, whole[: int(len(whole) * kept)])


@pytest.mark.parametrize(
    "content",
    [
        '{"audios": [}',
        '{"audios": [], 1: 2}',
        '{"audios": [] "next": 2}',
        '{"audios": [] : }',
        '{"audios" []}',
        '{"audios": ["a" "b"]}',
        '{"audios": [1,]}',
        '{"audios": 1',
        '{"audios',
        "{",
        '{"audios": [{"aid": ' + "9" * 5000 + "}]}",
        '{"audios": []} trailing',
        '{"audios": [' + "[" * 100_000,
    ],
)
def test_what_is_not_json_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="not whole JSON from character"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content", ["{}", '{"audios": []}', '{"audios": {"a": 1}}', '{"recordings": [{"audios": []}]}']
)
def test_json_without_audios_is_refused(tmp_path, content):
    with pytest.raises(InputError, match='nothing in a list called "audios"; expected GigaSpeech'):
        read(tmp_path, content)


def test_a_broken_byte_or_number_spoils_its_own_segment_alone(tmp_path):
    segments = segment(sid="a", text_tn="CAF?"), segment(sid="b", end_time=float("nan")), segment(sid="c")
    rows = read(tmp_path, json.dumps(corpus(audio(*segments))).encode().replace(b"CAF?", b"CAF\xc9"))
    assert [getattr(row, "reason", "") for row in rows] == ["not_utf8", "bad_time", ""]


def test_json_is_known_by_its_first_character_whatever_its_name(tmp_path):
    content = "\ufeff \n" + json.dumps(corpus(audio(segment())))
    [row] = read(tmp_path, content, "manifest.tsv")
    assert row.duration_s == 8.52


def test_audios_are_read_one_by_one(tmp_path):
    path = tmp_path / "GigaSpeech.json"
    whole = json.dumps(corpus(*[audio(segment(sid=f"s{number}")) for number in range(2000)]))
    path.write_text(whole[:-1000])
    rows = read_corpus("gigaspeech", path, audio_root=None, columns={}, subset=None, language="en")
    assert next(rows).segment_id == "s0"  # long before the place where the file breaks off
    with pytest.raises(InputError):
        list(rows)


def test_a_line_of_the_tsv_becomes_a_segment(tmp_path):
    content = "tgt_text\t" + HEADER + "ignored\t" + tsv_line(speaker="spk1", src_lang="German", src_text="JA <PERIOD>")
    assert read(tmp_path, content, "train.tsv") == [
        Segment(
            segment_id="s1", recording_id=recording_id_of("audio/POD1.opus"), speaker_id="spk1",
            audio_path=str(tmp_path / "audio/POD1.opus"), audio_row=None, channel=None, offset_s=1.0, duration_s=1.5,
            text="ja", language="de", split=None, source=f"{tmp_path}/train.tsv:2", speaker_stated=True,
        )
    ]  # fmt: skip


def test_lines_of_one_file_are_one_recording(tmp_path):
    content = HEADER + tsv_line() + tsv_line(id="s2", audio="audio/POD1.opus:50000:24000")
    first, second = read(tmp_path, content, "train.tsv")
    assert first.recording_id == second.recording_id
    assert not first.speaker_stated


@pytest.mark.parametrize("audio", ["whole.wav", "a:b.wav", "/data:1/whole.wav", "at 10:30.wav"])
def test_an_audio_column_without_numbers_is_the_whole_file(tmp_path, audio):
    [row] = read(tmp_path, HEADER + tsv_line(audio=audio), "train.tsv")
    assert row.audio_path.endswith(audio)
    assert (row.offset_s, row.duration_s) == (0.0, None)


def test_a_colon_in_a_path_does_not_disturb_the_numbers(tmp_path):
    [row] = read(tmp_path, HEADER + tsv_line(audio="/data:1/a.opus:8000:24000"), "train.tsv")
    assert (row.audio_path, row.offset_s) == ("/data:1/a.opus", 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"audio": "a.opus:16000:24001"},
        {"audio": "a.opus:16000:2400"},
        {"n_frames": "24000.0"},
        {"n_frames": "many"},
        {"audio": "a.opus:24000"},
        {"audio": "a.opus:"},
        {"audio": "a.opus:16000:"},
        {"audio": "a.opus:x:24000"},
        {"audio": "a.opus:-16000:24000"},
        {"audio": "a.opus:16000:-24000", "n_frames": "-24000"},
        {"audio": "a.opus:16000:0", "n_frames": "0"},
        {"audio": "a.opus:0.5:1.5", "n_frames": "1.5"},
        {"audio": "a.opus:" + "9" * 5000 + ":24000"},
    ],
)
def test_bad_times_in_the_tsv_are_rejected_with_their_line(tmp_path, changes):
    rows = read(tmp_path, HEADER + tsv_line() + tsv_line(id="bad", **changes) + tsv_line(id="s3"), "train.tsv")
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["s1", "s3"]
    assert (rows[1].id, rows[1].reason) == ("bad", "bad_time")
    assert rows[1].detail.startswith(f"{tmp_path}/train.tsv:3: ")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (tsv_line(audio="").encode(), "missing_audio"),
        (tsv_line(audio=":16000:24000").encode(), "missing_audio"),
        (tsv_line()[:20].encode() + b"\n", "broken_line"),
        (b"extra\t" + tsv_line().encode(), "broken_line"),
        (tsv_line().replace("HELLO", "café").encode("latin-1"), "not_utf8"),
        (tsv_line(src_text="<SIL>").encode(), "garbage_tag"),
        (tsv_line(src_text="").encode(), "no_text"),
        (tsv_line(id="../s1").encode(), "bad_id"),
    ],
)
def test_a_bad_line_of_the_tsv_is_rejected_with_its_number_and_the_rest_is_read(tmp_path, bad, reason):
    rows = read(tmp_path, (HEADER + tsv_line()).encode() + bad + tsv_line(id="s3").encode(), "train.tsv")
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["s1", "s3"]
    assert rows[1].reason == reason
    assert rows[1].detail.startswith(f"{tmp_path}/train.tsv:3: ")


def test_a_tsv_without_a_column_is_refused_by_name(tmp_path):
    with pytest.raises(
        InputError, match=r"train\.tsv:1: the header lacks the column src_text; it has: id, audio, tgt_text"
    ):
        read(tmp_path, "id\taudio\ttgt_text\n", "train.tsv")


def test_a_subset_of_a_tsv_is_refused(tmp_path):
    with pytest.raises(InputError, match="a TSV names no subsets"):
        read(tmp_path, HEADER + tsv_line(), "train.tsv", subset="XS")


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe{\x00"])
def test_a_file_of_neither_form_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=str(tmp_path)):
        read(tmp_path, content)
