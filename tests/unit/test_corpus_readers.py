import gzip
import json
import re

import pytest

from earmark import text
from earmark.corpus.lines import LONGEST_LINE_BYTES
from earmark.corpus.readers import read_corpus
from earmark.corpus.records import BadEntry, Segment, recording_id_of
from earmark.errors import InputError
from earmark.text import id_problem

HEADER = "segment_id\taudio\ttext\toffset_s\tduration_s\n"
HOSTILE_IDS = ["../../evil", "a/b", 'a"b', "a\u2028b", "a\0b", "\U0001f600", "x" * 10_000, "a b", "", ".hidden", "-rf"]


def read(tmp_path, content, format="tsv", **options):
    path = tmp_path / f"manifest.{format}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = {"audio_root": None, "columns": {}, "subset": None, "language": "en"} | options
    return list(read_corpus(format, path, **settings))


def line(**changes):
    row = {"key": "s1", "wav": "a.wav", "txt": "hello"} | changes
    return json.dumps({name: value for name, value in row.items() if value is not ...}) + "\n"


def test_a_full_tsv_line_becomes_a_segment(tmp_path):
    content = (
        "split\tlanguage\tspeaker\trecording_id\tduration_s\toffset_s\ttext\taudio\tsegment_id\tlicence\tchannel\n"
        "dev\tde\tanna\tr1\t2.5\t1.25\tHallo, Welt!\tsub/a.wav\ts1\tCC0\t1\n"
    )
    assert read(tmp_path, content) == [
        Segment(
            segment_id="s1", recording_id="r1", speaker_id="anna", audio_path=str(tmp_path / "sub/a.wav"),
            audio_row=None, channel=1, offset_s=1.25, duration_s=2.5, text="hallo welt", language="de", split="dev",
            source=f"{tmp_path}/manifest.tsv:2", speaker_stated=True,
        )
    ]  # fmt: skip


def test_the_converters_input_lines_are_read_with_defaults(tmp_path):
    [segment] = read(tmp_path, line(), "jsonl", audio_root=tmp_path / "audio", language="fr")
    assert segment == Segment(
        segment_id="s1", recording_id="a", speaker_id="a", audio_path=str(tmp_path / "audio/a.wav"), audio_row=None,
        channel=None, offset_s=0.0, duration_s=None, text="hello", language="fr", split=None,
        source=f"{tmp_path}/manifest.jsonl:1", speaker_stated=False,
    )  # fmt: skip


def test_an_absolute_audio_path_ignores_the_audio_root(tmp_path):
    [segment] = read(tmp_path, line(wav="/elsewhere/b.flac"), "jsonl", audio_root=tmp_path)
    assert segment.audio_path == "/elsewhere/b.flac"


def test_every_audio_path_gives_a_recording_of_its_own_with_a_usable_id():
    paths = [
        "x.wav", "x-y.wav", "x/y.wav", "x/y/z.wav", "x/y-z.wav", "x-y/z.wav", "a/001.wav", "b/001.wav", "../a/001.wav",
        "/a/001.wav", "/b/001.wav", "my talk 01.wav", "my-talk-01.wav", "my_talk?01.wav", "-rf.wav", ".hidden", "...",
        "😀.wav", "语音/一.wav", "a/../b.wav", "long/" * 60 + "x.wav", "语" * 80 + ".wav", "语" * 81 + ".wav",
        "/", ".", "..",
    ]  # fmt: skip
    ids = {path: recording_id_of(path) for path in paths}
    assert len(set(ids.values())) == len(paths)
    assert {path: problem for path, name in ids.items() if (problem := text.id_problem(name))} == {}


@pytest.mark.parametrize(
    ("audio", "pattern"),
    [
        ("jfk.flac", "jfk"),
        ("./jfk.flac", "jfk"),
        ("x/y.wav", "x-y-HASH"),
        ("my talk 01.wav", "my-talk-01-HASH"),
        ("a b/talk.wav", "talk-HASH"),
        ("/elsewhere/b.flac", "b-HASH"),
        ("../b.flac", "b-HASH"),
        ("a/../b.flac", "b-HASH"),
        ("long/" * 60 + "x.wav", "x-HASH"),
        ("😀.wav", "unnamed-HASH"),
        ("rec.1", "rec.1"),
        ("rec.2", "rec.2"),
    ],
)
def test_a_recording_is_called_after_its_audio_path(audio, pattern):
    assert re.fullmatch(pattern.replace("HASH", "[0-9a-f]{8}"), recording_id_of(audio))


def test_a_recording_keeps_its_id_from_run_to_run_whatever_the_suffix():
    assert {recording_id_of(f"x/y.{suffix}") for suffix in ("wav", "flac")} == {"x-y-8c9048ad"}


def test_a_file_name_that_cannot_be_an_id_is_no_reason_to_reject_a_segment(tmp_path):
    paths = ["my talk 01.wav", "a/001.wav", "b/001.wav"]
    rows = read(tmp_path, "".join(line(key=f"s{number}", wav=path) for number, path in enumerate(paths)), "jsonl")
    assert len({row.recording_id for row in rows}) == len({row.speaker_id for row in rows}) == 3


def test_our_own_column_names_win_over_other_spellings(tmp_path):
    [segment] = read(tmp_path, line(segment_id="ours", id="theirs"), "jsonl")
    assert segment.segment_id == "ours"


def test_numbers_are_taken_as_ids_and_times(tmp_path):
    [segment] = read(tmp_path, line(key=17, offset_s=1, duration_s="2.5"), "jsonl")
    assert (segment.segment_id, segment.offset_s, segment.duration_s) == ("17", 1.0, 2.5)


def test_windows_line_ends_and_byte_order_marks_change_nothing(tmp_path):
    plain = read(tmp_path, HEADER + "s1\ta.wav\thello\t0\t1\n")
    assert (
        read(tmp_path, b"\xef\xbb\xbf" + (HEADER + "s1\ta.wav\thello\t0\t1\n").replace("\n", "\r\n").encode()) == plain
    )
    assert [row.segment_id for row in read(tmp_path, "\ufeff" + line().replace("\n", "\r\n"), "jsonl")] == ["s1"]


def test_blank_lines_are_passed_over_and_line_numbers_stay_true(tmp_path):
    rows = read(tmp_path, "\n" + HEADER + "\n  \ns1\ta.wav\thello\t0\t1\n\nbroken\n")
    assert [getattr(row, "source", None) for row in rows] == [f"{tmp_path}/manifest.tsv:5", None]
    assert rows[1].detail.startswith(f"{tmp_path}/manifest.tsv:7: ")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("s2\ta.wav\thello\t0", "broken_line"),
        ("s2\ta.wav\thello\t0\t1\textra", "broken_line"),
        ("s2\ta.wav\thello\tzero\t1", "bad_time"),
        ("s2\ta.wav\thello\t-1\t1", "bad_time"),
        ("s2\ta.wav\thello\t0\tnan", "bad_time"),
        ("s2\ta.wav\thello\tinf\t1", "bad_time"),
        ("s2\ta.wav\thello\t0\t0", "bad_time"),
        ("s2\ta.wav\thello\t0\t-0.5", "bad_time"),
        ("s2\ta.wav\t\t0\t1", "no_text"),
        ("s2\ta.wav\t... !?\t0\t1", "no_text"),
        ("s2\t\thello\t0\t1", "missing_audio"),
    ],
)
def test_a_bad_tsv_line_is_rejected_with_its_place_and_the_rest_is_read(tmp_path, cells, reason):
    rows = read(tmp_path, f"{HEADER}s1\ta.wav\thello\t0\t1\n{cells}\ns3\ta.wav\thello\t0\t1\n")
    assert [row.segment_id for row in rows if isinstance(row, Segment)] == ["s1", "s3"]
    [bad] = [row for row in rows if isinstance(row, BadEntry)]
    assert bad.reason == reason
    assert bad.detail.startswith(f"{tmp_path}/manifest.tsv:3: ")
    assert bad.id == ("" if reason == "broken_line" else cells.split("\t")[0])


@pytest.mark.parametrize("identifier", HOSTILE_IDS)
@pytest.mark.parametrize("field", ["key", "recording_id", "speaker"])
def test_hostile_segment_ids_are_rejected_and_other_names_are_made_ids(tmp_path, field, identifier):
    [row] = read(tmp_path, line(**{field: identifier}), "jsonl")
    if field == "key":
        assert (row.reason, row.id) == ("bad_id", identifier)
    else:  # an empty cell means "not stated"
        assert id_problem(row.recording_id) is None
        assert id_problem(row.speaker_id) is None
        assert row.speaker_stated == (field == "speaker" and bool(identifier))


def test_two_names_never_become_one_id(tmp_path):
    names = ["John Smith", "John-Smith", "John  Smith", "John/Smith", "😀", "😃"]
    rows = [read(tmp_path, line(speaker=name), "jsonl")[0] for name in names]
    assert len({row.speaker_id for row in rows}) == len(names)
    assert rows[0].speaker_id.startswith("John-Smith-")


@pytest.mark.parametrize("value", ["1e303", "1_0", "nan", "\u0661", "-1", "1e8", "0x10", "1" * 400])
def test_a_number_that_no_clock_shows_is_a_bad_time(tmp_path, value):
    [row] = read(tmp_path, line(duration_s=value), "jsonl")
    assert row.reason == "bad_time"


@pytest.mark.parametrize(("stated", "code"), [("English", "en"), ("eng", "en"), ("en-US", "en-US"), ("Tamil", "Tamil")])
def test_a_language_is_never_replaced_by_the_default(tmp_path, stated, code):
    [row] = read(tmp_path, line(language=stated), "jsonl")
    assert row.language == code


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"key": "s1", "wav": "a.wav", "txt": "he', "broken_line"),
        (b'["s1", "a.wav", "hello"]', "broken_line"),
        (b'"s1"', "broken_line"),
        (b"{" * 100_000, "broken_line"),
        (b'{"key": ' + b"1" * 5000 + b"}", "broken_line"),
        (line(txt=...).encode(), "broken_line"),
        (line(wav=...).encode(), "broken_line"),
        (line(key=None).encode(), "broken_line"),
        (line(txt=["hello"]).encode(), "broken_line"),
        (line(txt={"a": "hello"}).encode(), "broken_line"),
        (line(key=True).encode(), "broken_line"),
        (line(offset_s=float("nan")).encode(), "bad_time"),
        (line(duration_s=-1).encode(), "bad_time"),
        (line(duration_s=10**400).encode(), "bad_time"),
        (line(wav="a\0b.wav", recording_id="r").encode(), "missing_audio"),
        (b'{"key": "\xff", "wav": "a.wav", "txt": "x"}', "not_utf8"),
        (b'{"key": "s1", "wav": "a\\ud800.wav", "txt": "x", "recording_id": "r"}', "not_utf8"),
        (b'{"key": "s1", "wav": "a.wav", "txt": "x", "split": "\\udfff"}', "not_utf8"),
    ],
)
def test_a_bad_json_line_is_rejected_with_its_place_and_the_rest_is_read(tmp_path, content, reason):
    good = line(key="good")
    rows = read(tmp_path, content.rstrip(b"\n") + b"\n" + good.encode(), "jsonl")
    assert (rows[0].reason, rows[1].segment_id) == (reason, "good")
    assert rows[0].detail.startswith(f"{tmp_path}/manifest.jsonl:1: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the manifest is empty"),
        ("\n\n", "the manifest is empty"),
        ("segment_id\taudio\n", "lacks the column text or txt; it has: segment_id, audio"),
        ("s1\ta.wav\thello\n", "lacks the column segment_id or id or key, audio or wav or audio_path, text or txt"),
        (b"segment_id\taudio\xff\ttext\n", "save the manifest as UTF-8"),
        (HEADER.encode("utf-16"), "save the manifest as UTF-8"),
    ],
)
def test_a_manifest_without_a_usable_header_is_refused(tmp_path, content, says):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "manifest.tsv") in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_manifest_names_the_setting(tmp_path):
    with pytest.raises(InputError, match=r"none\.tsv: there is no such file or folder; set corpus\.manifest"):
        next(read_corpus("tsv", tmp_path / "none.tsv", audio_root=None, columns={}, subset=None, language="en"))


def test_a_column_that_stands_twice_in_the_header_is_refused(tmp_path):
    with pytest.raises(InputError, match="names the column text twice"):
        read(tmp_path, "segment_id\taudio\ttext\ttext\ns1\ta.wav\thello\tgoodbye\n")


@pytest.mark.parametrize("format", ["tsv", "jsonl"])
def test_columns_may_have_names_of_the_users_own(tmp_path, format):
    columns = {"segment_id": "utt", "audio": "path", "text": "sentence"}
    content = {
        "tsv": "utt\tpath\tsentence\ttext\ns1\ta.wav\tspoken\tunspoken\n",
        "jsonl": json.dumps({"utt": "s1", "path": "a.wav", "sentence": "spoken", "text": "unspoken"}),
    }
    [segment] = read(tmp_path, content[format], format, columns=columns)
    assert (segment.segment_id, segment.text) == ("s1", "spoken")


def test_a_column_that_there_is_no_use_for_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="there is no column 'sentence' to name; there are segment_id, audio, text"):
        read(tmp_path, line(), "jsonl", columns={"sentence": "txt"})


def test_columns_are_refused_for_a_format_that_names_its_own(tmp_path):
    with pytest.raises(InputError, match=r"corpus\.columns is for tsv, jsonl"):
        read(tmp_path, "{}", "gigaspeech", columns={"text": "sentence"})


def test_a_subset_is_refused_for_a_format_that_has_none(tmp_path):
    with pytest.raises(InputError, match=r"corpus\.subset is for gigaspeech"):
        read(tmp_path, line(), "jsonl", subset="XS")


@pytest.mark.parametrize("channel", ["-1", "left", "1.5", "99999"])
def test_a_channel_that_is_no_channel_number_is_rejected(tmp_path, channel):
    [row] = read(tmp_path, line(channel=channel), "jsonl")
    assert row.reason == "bad_channel"


def test_a_transcript_tag_is_treated_alike_in_every_format(tmp_path):
    tsv = HEADER + "s1\ta.wav\tYes <COMMA> no\t0\t1\ns2\ta.wav\t<MUSIC>\t0\t1\n"
    rows = [*read(tmp_path, tsv), *read(tmp_path, line(txt="Yes <COMMA> no") + line(txt="<music>"), "jsonl")]
    assert [getattr(row, "text", None) or row.reason for row in rows] == ["yes no", "garbage_tag"] * 2


def test_a_compressed_manifest_is_read(tmp_path):
    path = tmp_path / "manifest.jsonl.gz"
    path.write_bytes(gzip.compress(line().encode()))
    [segment] = read_corpus("jsonl", path, audio_root=None, columns={}, subset=None, language="en")
    assert segment.segment_id == "s1"


def test_a_compressed_manifest_that_breaks_off_is_refused(tmp_path):
    path = tmp_path / "manifest.jsonl.gz"
    path.write_bytes(gzip.compress("".join(line(key=f"s{number}") for number in range(5000)).encode())[:-100])
    with pytest.raises(InputError, match="not a whole gzip file"):
        list(read_corpus("jsonl", path, audio_root=None, columns={}, subset=None, language="en"))


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.jsonl:2: the line is longer than 16 MiB"):
        read(tmp_path, line().encode() + b"x" * (LONGEST_LINE_BYTES + 1), "jsonl")


def test_audio_below_a_folder_whose_name_is_not_utf8_is_rejected(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    [row] = read(folder, line(), "jsonl")
    assert row.reason == "missing_audio"
    assert "is not UTF-8; rename the file or folder" in row.detail


@pytest.mark.parametrize("manifest", [".", "folder.tsv"])
def test_a_folder_where_a_file_is_expected_is_refused(tmp_path, manifest):
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        list(read_corpus("tsv", tmp_path / manifest, audio_root=None, columns={}, subset=None, language="en"))
