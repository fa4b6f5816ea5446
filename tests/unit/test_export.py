import copy
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from earmark.artifacts import CHUNKS, SPLITS, StageTable, iterate_rows, rejected_path, write_json, write_table
from earmark.audio import SAMPLE_RATE, decode_audio, encode_flac
from earmark.errors import ConfigError, EarmarkError, TooManyRejectedError
from earmark.export.formats import (
    Example,
    conversation,
    fbank_frames,
    flat,
    funasr,
    funasr_nano,
    line_problem,
    text_units,
)
from earmark.export.funnel import counts_path, write_export_funnel
from earmark.export.interchange import write_interchange, write_interchange_shards
from earmark.export.splits import export_split
from earmark.export.tokenizer import BUNDLED, token_counter
from earmark.export.wavs import export_wavs, wav_path, write_wavs

FORMATS = ("funasr_nano", "funasr", "conversation", "flat")
EXAMPLE = Example("s1-t000", "/data/s1-t000.wav", 1.0, "ask not", "Which terms?", "Ohm's Law")


def line_of(format, example=EXAMPLE):
    return {
        "funasr_nano": lambda: funasr_nano(example, lambda text: len(text.split())),
        "funasr": lambda: funasr(example),
        "conversation": lambda: conversation(example),
        "flat": lambda: flat(example),
    }[format]()


@pytest.mark.parametrize(
    ("duration_s", "frames"), [(1.0, 98), (0.025, 1), (0.034, 1), (0.035, 2), (0.024, 0), (2.3, 228), (0.1234, 10)]
)
def test_speech_length_counts_10_ms_frames_of_25_ms_windows(duration_s, frames):
    assert fbank_frames(duration_s) == frames


@pytest.mark.parametrize(
    ("text", "units"), [("ask not what", 3), ("ask", 3), ("语音转写", 4), ("语音 转写", 2), (" ask ", 3)]
)
def test_text_length_is_words_where_there_are_spaces_and_characters_elsewhere(text, units):
    assert text_units(text) == units


def test_a_funasr_nano_line_is_chatml_with_lengths():
    row = line_of("funasr_nano")
    user, assistant = row["messages"][-2:]
    assert user == {
        "role": "user",
        "content": "语音转写：<|startofspeech|>!/data/s1-t000.wav<|endofspeech|>",
    }
    assert assistant == {"role": "assistant", "content": "ask not"}
    assert (row["speech_length"], row["text_length"]) == (98, 2)


def test_a_funasr_line_has_its_five_keys():
    assert line_of("funasr") == {
        "key": "s1-t000", "source": "/data/s1-t000.wav", "target": "ask not", "source_len": 98, "target_len": 2,
    }  # fmt: skip


def test_a_conversation_line_asks_about_the_audio_and_answers():
    assert line_of("conversation") == {
        "conversations": [
            {"from": "user", "value": "<audio>/data/s1-t000.wav</audio> Which terms?"},
            {"from": "assistant", "value": "Ohm's Law"},
        ]
    }


def test_a_flat_line_has_audio_text_and_prompt():
    assert line_of("flat") == {"audio": "/data/s1-t000.wav", "text": "Ohm's Law", "prompt": "Which terms?"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_passes_its_own_check(format):
    assert line_problem(format, line_of(format)) is None


def test_a_flat_line_needs_no_prompt_and_a_chatml_line_no_system_turn():
    assert line_problem("flat", {"audio": "/a.wav", "text": "x"}) is None
    row = line_of("funasr_nano")
    assert line_problem("funasr_nano", row | {"messages": row["messages"][-2:]}) is None


_KEYS = st.sampled_from(["messages", "role", "content", "audio", "text", "conversations", "from", "value", "key"])

DAMAGES = [
    ("funasr_nano", ["messages"], ...),
    ("funasr_nano", ["messages"], []),
    ("funasr_nano", ["messages"], "text"),
    ("funasr_nano", ["messages", 1, "role"], "assistant"),
    ("funasr_nano", ["messages", 1, "content"], "<|startofspeech|>!/a.wav<|endofspeech|>"),
    ("funasr_nano", ["messages", 1, "content"], "语音转写：<|startofspeech|>!a.wav<|endofspeech|>"),
    ("funasr_nano", ["messages", 1, "content"], "语音转写：<|startofspeech|>/a.wav<|endofspeech|>"),
    ("funasr_nano", ["messages", 1, "content"], 7),
    ("funasr_nano", ["messages", 2, "content"], ""),
    ("funasr_nano", ["messages", 2, "content"], 7),
    ("funasr_nano", ["speech_length"], 0),
    ("funasr_nano", ["speech_length"], 98.0),
    ("funasr_nano", ["text_length"], True),
    ("funasr_nano", ["text_length"], ...),
    ("funasr", ["key"], ""),
    ("funasr", ["key"], 7),
    ("funasr", ["source"], "relative.wav"),
    ("funasr", ["source"], None),
    ("funasr", ["target"], " "),
    ("funasr", ["target"], ["ask"]),
    ("funasr", ["target_len"], 7),
    ("funasr", ["source_len"], 0),
    ("funasr", ["source_len"], "98"),
    ("funasr", ["extra"], 1),
    ("funasr", ["source_len"], ...),
    ("conversation", ["conversations"], ...),
    ("conversation", ["conversations"], []),
    ("conversation", ["conversations", 0, "from"], "assistant"),
    ("conversation", ["conversations", 0, "value"], "<audio>a.wav</audio> Which?"),
    ("conversation", ["conversations", 0, "value"], "<audio>/a.wav</audio>"),
    ("conversation", ["conversations", 0, "value"], "Which?"),
    ("conversation", ["conversations", 1, "value"], ""),
    ("conversation", ["conversations", 1, "value"], 7),
    ("flat", ["audio"], "a.wav"),
    ("flat", ["audio"], ...),
    ("flat", ["text"], ""),
    ("flat", ["text"], 7),
    ("flat", ["prompt"], 7),
    ("flat", ["extra"], "x"),
]


@pytest.mark.parametrize(("format", "path", "value"), DAMAGES)
def test_a_damaged_line_is_refused(format, path, value):
    row = copy.deepcopy(line_of(format))
    place = row
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert line_problem(format, row)


@pytest.mark.parametrize("format", FORMATS)
@given(
    row=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda node: st.lists(node, max_size=3) | st.dictionaries(_KEYS, node, max_size=4),
        max_leaves=10,
    )
)
def test_no_line_whatever_it_holds_breaks_the_check(format, row):
    assert line_problem(format, row)


@pytest.mark.parametrize("format", FORMATS)
@given(text=st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_quotes_newlines_and_emoji_come_back_from_a_line_as_they_were(format, text):
    example = Example("k", "/a b/'\"\n.wav", 1.0, text, "Which?", text)
    line = json.dumps(line_of(format, example), ensure_ascii=False)
    assert "\n" not in line
    row = json.loads(line)
    answers = {
        "funasr_nano": lambda: row["messages"][-1]["content"],
        "funasr": lambda: row["target"],
        "conversation": lambda: row["conversations"][1]["value"],
        "flat": lambda: row["text"],
    }
    assert answers[format]() == text


def test_bundled_tokens_are_qwens():
    count = token_counter(BUNDLED)
    assert count("hello world") == 2
    assert count("") == 0
    assert count("<|endoftext|>") > 1  # plain text here, no control token


def test_a_tokenizer_that_is_not_there_names_the_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"export\.tokenizer .* is neither a model folder"):
        token_counter(str(tmp_path / "nowhere"))


@pytest.fixture
def chunks(tmp_path):
    """One shard of chunks with its wavs, the split that holds them, and a glossary."""
    tone = (0.3 * np.sin(np.arange(SAMPLE_RATE) / 9)).astype(np.float32)
    rows = [
        {
            "chunk_id": chunk_id,
            "segment_id": "s1",
            "recording_id": "rec1",
            "speaker_id": "anna",
            "term": term,
            "main_term": main_term,
            "has_term": term is not None,
            "other_terms": others,
            "text": text,
            "language": "en",
            "start_s": 2.0,
            "end_s": 3.0,
            "term_start_s": 2.25 if term else None,
            "term_end_s": 2.75 if term else None,
            "sample_rate": SAMPLE_RATE,
            "audio": {"bytes": encode_flac(tone), "path": f"{chunk_id}.flac"},
        }
        for chunk_id, term, main_term, others, text in [
            ("s1-t000", "big apple", "new york", ["ohm"], "the big apple ohm"),
            ("s1-t001", "ohm", "ohm", [], "ohm"),
            ("s1-n000", None, None, [], "a word"),
            ("s1-n001", None, None, [], ""),
        ]
    ]
    write_table(tmp_path / "chunks/0000.parquet", pa.Table.from_pylist(rows, schema=CHUNKS))
    split = [
        {name: row.get(name) for name in SPLITS.names} | {"shard": "0000", "duration_s": 1.0, "seen_term": None}
        for row in rows
    ]
    write_table(tmp_path / "splits/train.parquet", pa.Table.from_pylist(split, schema=SPLITS))
    write_json(tmp_path / "glossary.json", {"new york": {"term": 'New "York"\n\U0001f5fd'}, "ohm": {"term": "Ω"}})
    write_wavs(tmp_path / "chunks/0000.parquet", tmp_path / "wavs/0000")
    return tmp_path


def export(folder, format, *, task="spot_terms", fraction=0.5):
    output = folder / f"export/{format}/train.jsonl"
    export_split(
        folder / "splits/train.parquet", folder / "glossary.json", {"0000": folder / "wavs/0000"}, output,
        format=format, task=task, prompt="Which?", tokenizer=BUNDLED, max_rejected_fraction=fraction,
    )  # fmt: skip
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]


def test_wavs_hold_the_chunks_samples_in_layered_folders(chunks):
    wavs = sorted((chunks / "wavs/0000").rglob("*.wav"))
    assert [path.relative_to(chunks / "wavs/0000").parts[:2] for path in wavs] == [("rec", "rec1")] * 4
    for row in iterate_rows(chunks / "chunks/0000.parquet"):
        path = wav_path(chunks / "wavs/0000", row["recording_id"], row["chunk_id"])
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == SAMPLE_RATE
        assert soundfile.info(path).subtype == "PCM_16"
        assert np.array_equal(samples, decode_audio(row["audio"]["bytes"]))


def test_wavs_replace_those_of_an_earlier_run_and_of_a_killed_one(chunks):
    (chunks / "wavs/0000/old.wav").write_bytes(b"old")
    (chunks / "wavs/.0000.tmp").mkdir()
    write_wavs(chunks / "chunks/0000.parquet", chunks / "wavs/0000")
    assert [path.name for path in (chunks / "wavs").iterdir()] == ["0000"]
    assert not (chunks / "wavs/0000/old.wav").exists()


def test_term_spotting_answers_with_display_forms_or_none(chunks):
    assert [row["text"] for row in export(chunks, "flat")] == ['New "York"\n\U0001f5fd, Ω', "Ω", "none", "none"]
    assert [row["conversations"][1]["value"] for row in export(chunks, "conversation")][1:3] == ["Ω", "none"]


@pytest.mark.parametrize("format", FORMATS)
def test_every_line_names_an_existing_wav_by_its_absolute_path(chunks, format):
    lines = export(chunks, format)
    wavs = {str(path) for path in (chunks / "wavs").rglob("*.wav")}
    assert all(sum(json.dumps(wav)[1:-1] in json.dumps(line) for wav in wavs) == 1 for line in lines)
    assert all(line_problem(format, line) is None for line in lines)


@pytest.mark.parametrize(("format", "task"), [("funasr", "spot_terms"), ("funasr_nano", "spot_terms"),
                                              ("flat", "transcribe"), ("conversation", "transcribe")])  # fmt: skip
def test_where_the_text_is_learnt_a_chunk_without_words_is_rejected(chunks, format, task):
    assert len(export(chunks, format, task=task)) == 3
    rejected = json.loads(rejected_path(chunks / f"export/{format}/train.jsonl").read_text())
    assert (rejected["id"], rejected["reason"]) == ("s1-n001", "no_text")


def test_a_chunk_shorter_than_a_frame_is_rejected_where_frames_are_counted(chunks):
    rows = [row | {"duration_s": 0.02} for row in iterate_rows(chunks / "splits/train.parquet")][:1]
    write_table(chunks / "splits/train.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    assert export(chunks, "funasr", fraction=1.0) == []
    assert json.loads(rejected_path(chunks / "export/funasr/train.jsonl").read_text())["reason"] == "too_short"
    assert len(export(chunks, "flat")) == 1


def test_too_many_rejected_chunks_leave_no_export(chunks):
    with pytest.raises(TooManyRejectedError, match=r"no_text \(1\)"):
        export(chunks, "funasr", fraction=0.2)
    assert not (chunks / "export/funasr/train.jsonl").exists()
    assert rejected_path(chunks / "export/funasr/train.jsonl").exists()


def test_an_empty_split_gives_an_empty_file(chunks):
    write_table(chunks / "splits/train.parquet", pa.Table.from_pylist([], schema=SPLITS))
    assert export(chunks, "flat", fraction=0.0) == []


def test_the_interchange_file_has_the_fields_existing_programs_read(chunks):
    output = chunks / "term_level_chunks_merged.json"
    write_interchange([chunks / "chunks/0000.parquet"], [chunks / "wavs/0000"], output, context_s=0.25)
    entries = json.loads(output.read_text(encoding="utf-8"))
    assert entries[0] == {
        "segment_id": "s1",
        "recording_id": "rec1",
        "speaker_id": "anna",
        "term_chunk_audio": str(chunks / "wavs/0000/rec/rec1/s1-t000.wav"),
        "term_chunk_text": "the big apple ohm",
        "term_chunk_audio_ground_truth_terms": ["new york", "ohm"],
        "term_start_time": 2.25,
        "term_end_time": 2.75,
        "term_duration": 0.5,
        "extended_start_time": 2.0,
        "extended_end_time": 3.0,
        "extended_duration": 1.0,
        "context_seconds": 0.25,
    }
    assert [entry["term_chunk_audio_ground_truth_terms"] for entry in entries[2:]] == [[], []]
    assert set(entries[2]) == set(entries[0])
    assert all(Path(entry["term_chunk_audio"]).is_file() for entry in entries)
    assert len(output.read_text(encoding="utf-8").splitlines()) == len(entries) + 2


def test_no_chunks_make_an_empty_interchange_list(tmp_path):
    write_table(tmp_path / "0000.parquet", pa.Table.from_pylist([], schema=CHUNKS))
    write_interchange([tmp_path / "0000.parquet"], [tmp_path / "wavs"], tmp_path / "merged.json", context_s=1.0)
    assert json.loads((tmp_path / "merged.json").read_text()) == []


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (1, ["0_1", "1_2", "2_3", "3_4"]),
        (3, ["0_3", "3_4"]),
        (4, ["0_4"]),
        (9, ["0_4"]),
    ],
)
def test_interchange_shards_are_named_by_their_rows_and_hold_the_merged_list(chunks, rows, names):
    tables, wavs = [chunks / "chunks/0000.parquet"], [chunks / "wavs/0000"]
    write_interchange(tables, wavs, chunks / "merged.json", context_s=0.25)
    for shard_rows in (2, rows):  # the second leaves nothing of the first
        write_interchange_shards(tables, wavs, chunks / "shards", context_s=0.25, shard_rows=shard_rows)
    paths = [chunks / f"shards/term_level_chunks_{name}.json" for name in names]
    assert set((chunks / "shards").iterdir()) == set(paths)
    shards = [entry for path in paths for entry in json.loads(path.read_text(encoding="utf-8"))]
    assert shards == json.loads((chunks / "merged.json").read_text(encoding="utf-8"))


def test_no_chunks_make_one_empty_interchange_shard(tmp_path):
    write_table(tmp_path / "0000.parquet", pa.Table.from_pylist([], schema=CHUNKS))
    write_interchange_shards([tmp_path / "0000.parquet"], [tmp_path], tmp_path / "shards", context_s=1.0, shard_rows=5)
    assert json.loads((tmp_path / "shards/term_level_chunks_0_0.json").read_text()) == []


def split_table(folder, name, rows, dropped=0):
    """A SPLITS table with its counts, in which `dropped` more rows were rejected."""
    path = folder / f"kept/{name}.parquet"
    with StageTable(path, SPLITS, unit="chunks", max_rejected_fraction=1.0) as table:
        table.rejected.input += len(rows) + dropped
        for row in rows:
            table.keep(row)
        for number in range(dropped):
            table.reject(f"dropped{number}", "unseen_term", "")
    return path


def kept_splits(folder):
    """Of the four chunks, two in train, one in dev; one, and one of another shard, in none and in test."""
    rows = pq.read_table(folder / "splits/train.parquet").to_pylist()
    return [
        split_table(folder, "train", rows[:2], dropped=1),
        split_table(folder, "dev", rows[2:3]),
        split_table(folder, "test", [rows[3] | {"shard": "0001", "chunk_id": "other"}]),
    ]


def test_wavs_are_those_of_the_splits_unless_all_chunks_are_asked_for(chunks):
    splits, shard = kept_splits(chunks), chunks / "chunks/0000.parquet"
    export_wavs(shard, splits, chunks / "out/0000", all_chunks=False, packed=False, max_files=4)
    assert {path.stem for path in (chunks / "out").rglob("*.wav")} == {"s1-t000", "s1-t001", "s1-n000"}
    export_wavs(shard, splits, chunks / "out/0000", all_chunks=True, packed=False, max_files=5)
    assert len(list((chunks / "out").rglob("*.wav"))) == 4


@pytest.mark.parametrize("options", [{"packed": True, "max_files": 100}, {"packed": False, "max_files": 3}])
def test_wavs_beyond_the_limit_and_those_for_another_folder_are_packed_as_the_lines_name_them(chunks, options):
    splits, shard = kept_splits(chunks), chunks / "chunks/0000.parquet"
    for run in ("out", "again"):
        export_wavs(shard, splits, chunks / run / "0000", all_chunks=False, **options)
    assert [path.name for path in (chunks / "out/0000").iterdir()] == ["wavs.tar"]
    assert (chunks / "out/0000/wavs.tar").read_bytes() == (chunks / "again/0000/wavs.tar").read_bytes()
    with tarfile.open(chunks / "out/0000/wavs.tar") as tar:
        tar.extractall(chunks / "root", filter="data")
    export_split(
        splits[0], chunks / "glossary.json", {"0000": chunks / "root/0000"}, chunks / "train.jsonl", format="flat",
        task="spot_terms", prompt="?", tokenizer=BUNDLED, max_rejected_fraction=0.0,
    )  # fmt: skip
    named = [Path(json.loads(line)["audio"]) for line in (chunks / "train.jsonl").read_text().splitlines()]
    assert len(named) == 2
    for path in named:
        same = wav_path(chunks / "wavs/0000", "rec1", path.stem)
        assert path.read_bytes() == same.read_bytes()


def test_the_export_funnel_accounts_for_every_row_of_every_format(chunks):
    splits = dict(zip(("train", "dev"), kept_splits(chunks)[:2], strict=True))
    splits["dev"] = split_table(chunks, "dev", pq.read_table(chunks / "splits/train.parquet").to_pylist()[3:])
    exported = {}
    for format in ("flat", "funasr"):
        for name, path in splits.items():
            lines = chunks / f"export/{format}/{name}.jsonl"
            export_split(
                path, chunks / "glossary.json", {"0000": chunks / "wavs/0000"}, lines, format=format,
                task="spot_terms", prompt="?", tokenizer=BUNDLED, max_rejected_fraction=1.0,
            )  # fmt: skip
            exported[format, name] = counts_path(lines)
    write_export_funnel(exported, splits, chunks / "export/funnel.json")
    steps = json.loads((chunks / "export/funnel.json").read_text())["steps"]
    counted = {(s["format"], s["split"]): (s["input"], s["kept"], s["reasons"]) for s in steps}
    assert counted == {
        ("flat", "train"): (2, 2, {}), ("flat", "dev"): (1, 1, {}), ("funasr", "train"): (2, 2, {}),
        ("funasr", "dev"): (1, 0, {"no_text": 1}),
    }  # fmt: skip
    splits["dev"] = splits["train"]
    with pytest.raises(EarmarkError, match="do not account for the 2 rows"):
        write_export_funnel(exported, splits, chunks / "export/funnel.json")


@pytest.mark.parametrize(
    ("user", "valid"),
    [
        ("<audio>/a.wav</audio> Which?", True),
        ("<audio>/</audio> x.wav</audio> Which?", True),  # a file of that name
        ("<audio>/a.wav</audio> ", False),
        ("<audio>/a.wav</audio>Which?", False),
        ("<audio>/</audio> Which?", False),
        ("<audio>a.wav</audio> Which?", False),
        (" <audio>/a.wav</audio> Which?", False),
        (None, False),
    ],
)
def test_a_conversation_asks_about_one_absolute_path(user, valid):
    row = {"conversations": [{"from": "user", "value": user}, {"from": "assistant", "value": "x"}]}
    assert (line_problem("conversation", row) is None) == valid


@pytest.mark.parametrize(
    ("path", "valid"), [("!/a.wav", True), ("!/", False), ("!a.wav", False), ("/a.wav", False), ("!/a.wav ", True)]
)
def test_a_funasr_nano_line_holds_one_absolute_path_between_the_speech_marks(path, valid):
    row = line_of("funasr_nano")
    row["messages"][-2]["content"] = f"语音转写：<|startofspeech|>{path}<|endofspeech|>"
    assert (line_problem("funasr_nano", row) is None) == valid
    row["messages"][-2]["content"] += " "
    assert line_problem("funasr_nano", row)
