"""Whatever the bytes of a corpus, its reader gives rows or an InputError, and ends."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.corpus.readers import READERS, read_corpus
from earmark.corpus.records import BadEntry
from earmark.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """A small valid corpus: its files, the one to name as the manifest ("" is their folder), and how many rows it has.

    `most_rows(content)`: how many rows one file with this content can account for.
    """

    format: str
    manifest: str
    files: dict[str, bytes]
    rows: int
    most_rows: Callable[[bytes], int]


def lines_of(content: bytes) -> int:
    return sum(1 for line in content.split(b"\n") if line.strip())


def lines_or_file(content: bytes) -> int:
    return max(1, lines_of(content))  # an audio file without a line is a row too


def values_of(content: bytes) -> int:
    return content.count(b",") + content.count(b"[") + 1


def json_lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet() -> bytes:
    table = pa.table(
        {
            "id": ["s1", "s2", "s3"],
            "audio": pa.array(
                [{"bytes": b"RIFF", "path": None}, {"bytes": None, "path": "a.wav"}, None],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "text": ["hello", "<SIL>", None],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


_SEGMENTS = [
    {
        "sid": f"s{n}",
        "speaker": "N/A",
        "begin_time": n,
        "end_time": n + 1.5,
        "text_tn": "HI <COMMA> YOU",
        "subsets": ["{XL}"],
    }
    for n in range(3)
]
_AUDIOS = [{"aid": f"r{n}", "path": f"audio/r{n}.opus", "segments": _SEGMENTS} for n in range(2)]
_RECORDINGS = json_lines(
    *(
        {"id": f"r{n}", "sources": [{"type": "file", "channels": [0], "source": f"r{n}.wav"}], "sampling_rate": 16000,
         "num_samples": 16000, "duration": 1.0}
        for n in range(2)
    )
)  # fmt: skip
_SUPERVISIONS = json_lines(
    *(
        {"id": f"s{n}", "recording_id": f"r{n % 2}", "start": 0.1, "duration": 0.5, "channel": 0, "text": "hello",
         "speaker": "anna", "language": "English"}
        for n in range(4)
    )
)  # fmt: skip

CORPORA = {
    "tsv": Corpus(
        "tsv",
        "manifest.tsv",
        {
            "manifest.tsv": (
                "segment_id\taudio\ttext\toffset_s\tduration_s\ns1\ta.wav\thello\t0\t1\ns2\tb.wav\t手机\t\t\n"
            ).encode()
        },
        2,
        lines_of,
    ),
    "jsonl": Corpus(
        "jsonl",
        "manifest.jsonl",
        {
            "manifest.jsonl": json_lines(
                {"key": "s1", "wav": "a.wav", "txt": "hello", "offset_s": 0, "channel": 1},
                {"id": "s2", "audio": "b.wav", "text": "手机", "duration_s": 1.5, "speaker": "anna", "language": "zh"},
            )
        },
        2,
        lines_of,
    ),
    "gigaspeech json": Corpus(
        "gigaspeech", "g.json", {"g.json": json.dumps({"language": "EN", "audios": _AUDIOS}).encode()}, 6, values_of
    ),
    "gigaspeech tsv": Corpus(
        "gigaspeech",
        "g.tsv",
        {
            "g.tsv": b"id\taudio\tn_frames\tspeaker\tsrc_text\tsrc_lang\n"
            b"s1\ta.opus:16000:24000\t24000\tN/A\tHELLO\ten\ns2\tb.opus\t9\tanna\tHI\ten\n"
        },
        2,
        lines_of,
    ),
    "librispeech": Corpus(
        "librispeech",
        "",
        {
            "dev/84/1/84-1.trans.txt": b"84-1-0000 GO DO\n84-1-0001 YOU HEAR\n",
            "dev/84/1/84-1-0000.flac": b"",
            "dev/84/1/84-1-0001.wav": b"",
        },
        2,
        lines_or_file,
    ),
    "kaldi": Corpus(
        "kaldi",
        "",
        {
            "wav.scp": b"r1 r1.wav\nr2 cat r2.wav |\n",
            "segments": b"a r1 0 1.5\nb r1 2 -1 1\nc r2 0 1\n",
            "text": "a HELLO\nb 手机\nc YES\n".encode(),
            "utt2spk": b"a anna\nb anna\nc ben\n",
        },
        3,
        lines_of,
    ),
    "kaldi without segments": Corpus(
        "kaldi", "", {"wav.scp": b"a a.wav\nb b.ark:12\n", "text": b"a HELLO\nb YES\n"}, 2, lines_of
    ),
    "lhotse": Corpus(
        "lhotse", "", {"recordings.jsonl": _RECORDINGS, "supervisions.jsonl": _SUPERVISIONS}, 4, lines_of
    ),
    "lhotse compressed": Corpus(
        "lhotse",
        "",
        {"recordings.jsonl.gz": gzip.compress(_RECORDINGS), "supervisions.jsonl.gz": gzip.compress(_SUPERVISIONS)},
        4,
        lambda content: 10_000,
    ),
    "huggingface": Corpus("huggingface", "train.parquet", {"train.parquet": parquet()}, 3, len),
}  # fmt: skip

_NASTY = [
    *(bytes([character]) for character in b'\0\t\n\r "\\{}[],:-|'), b"nan", b"1e999", b"-1", b"9" * 5000,
    b"\xff\xfe", b"[" * 5000,
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"null", b"true", b"../", b"N/A", b"<SIL>", "０".encode(),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` after some of what befalls files: bytes flipped, cut off or put in; lines lost or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        lines = content.splitlines(keepends=True) or [b""]
        line = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["flip", "cut", "lose", "repeat", "swap", "insert", "overwrite"])):
            case "flip":
                content = content[:place] + draw(st.binary(min_size=1, max_size=1)) + content[place + 1 :]
            case "cut":
                content = content[:place]
            case "lose":
                content = b"".join(lines[:line] + lines[line + 1 :])
            case "repeat":
                content = b"".join(lines[: line + 1] + lines[line:])
            case "swap":
                content = b"".join(lines[line:] + lines[:line])
            case "insert":
                content = content[:place] + draw(st.sampled_from(_NASTY)) + content[place:]
            case "overwrite":
                end = draw(st.integers(place, min(len(content), place + 20)))
                content = content[:place] + draw(st.sampled_from(_NASTY)) + content[end:]
    return content


def read(corpus: Corpus, folder, files: dict[str, bytes]) -> list:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = folder / corpus.manifest
    return list(read_corpus(corpus.format, manifest, audio_root=None, columns={}, subset=None, language="en"))


def check(corpus: Corpus, folder, files: dict[str, bytes]) -> None:
    try:
        rows = read(corpus, folder, files)
    except InputError as error:
        assert str(folder) in str(error)
        return
    assert len(rows) <= sum(map(corpus.most_rows, files.values()))
    for row in rows:
        if isinstance(row, BadEntry):
            assert row.reason
            assert row.detail.startswith(str(folder))
        else:
            json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode()  # fits into a file
            assert row.offset_s >= 0
            assert row.duration_s is None or row.duration_s > 0
            assert row.text and row.segment_id and row.recording_id


def test_every_format_is_fuzzed():
    assert {corpus.format for corpus in CORPORA.values()} == set(READERS)


@pytest.mark.parametrize("name", CORPORA)
def test_the_corpora_that_are_damaged_here_are_whole_at_first(tmp_path, name):
    corpus = CORPORA[name]
    rows = read(corpus, tmp_path / "corpus", corpus.files)
    assert len(rows) == corpus.rows
    assert any(not isinstance(row, BadEntry) for row in rows)


@pytest.mark.parametrize("name", CORPORA)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_corpus_gives_rows_or_an_input_error(tmp_path, name, data):
    corpus = CORPORA[name]
    spoiled = data.draw(st.sampled_from([file for file, content in corpus.files.items() if content]))
    files = corpus.files | {spoiled: data.draw(damaged(corpus.files[spoiled]))}
    check(corpus, tmp_path / "corpus", files)


@pytest.mark.parametrize("name", CORPORA)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_arbitrary_bytes_give_rows_or_an_input_error(tmp_path, name, data):
    corpus = CORPORA[name]
    content = st.one_of(
        st.binary(max_size=300), st.lists(st.sampled_from([*_NASTY, b"a", b"s1", b"r1 "]), max_size=30).map(b"".join)
    )
    spoiled = data.draw(st.sampled_from([file for file, content in corpus.files.items() if content]))
    check(corpus, tmp_path / "corpus", corpus.files | {spoiled: data.draw(content)})


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["s1", "r1", "-1", "[0]"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@pytest.mark.parametrize("name", ["jsonl", "gigaspeech json", "lhotse"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_json_values_of_another_kind_give_rows_or_an_input_error(tmp_path, name, data):
    corpus = CORPORA[name]
    spoiled = data.draw(st.sampled_from(list(corpus.files)))
    rows = [json.loads(line) for line in corpus.files[spoiled].splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        holder = data.draw(st.sampled_from(list(_holders(rows))))
        key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        holder[key] = data.draw(_VALUES)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()  # GigaSpeech's JSON is one line too
    check(corpus, tmp_path / "corpus", corpus.files | {spoiled: content})


def _holders(value):
    """Every object and list in `value` that is not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)
