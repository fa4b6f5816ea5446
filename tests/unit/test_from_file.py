import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.artifacts import iterate_rows, rejected_path, table_counts, write_json
from earmark.audio import decode_audio, read_audio
from earmark.chunks import from_file
from earmark.chunks.from_file import deal_entries, pack_chunks
from earmark.errors import EarmarkError, InputError, TooManyRejectedError
from earmark.export.interchange import write_interchange, write_interchange_shards
from earmark.export.wavs import write_wavs
from earmark.files import read_json


def entry(segment_id="POD1_S0001", terms=("Ohm",), **changes):
    return {
        "segment_id": segment_id, "term_chunk_audio": "a.wav", "term_chunk_text": "The ohm is a unit",
        "term_chunk_audio_ground_truth_terms": list(terms), "term_start_time": 3.2, "term_end_time": 3.6,
        "term_duration": 0.4, "extended_start_time": 3.0, "extended_end_time": 4.0, "extended_duration": 1.0,
        "context_seconds": 0.2,
    } | changes  # fmt: skip


def deal(folder, entries, name="chunks.json", shards=2, pattern=r"^(.+)_S\d+$", allowed=0.9):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in entries), encoding="utf-8")
    else:
        path.write_text(json.dumps(entries), encoding="utf-8")
    outputs = {f"{number:04d}": folder / f"manifest/{number:04d}.parquet" for number in range(shards)}
    deal_entries([path], outputs, folder / "manifest.json", recording_pattern=pattern, max_rejected_fraction=allowed)
    return outputs


def packed(folder, outputs):
    write_json(folder / "glossary.json", {"ohm": {}, "new york": {}, "volt": {}})
    write_json(folder / "alt2main.json", {"big apple": "new york"})
    write_json(folder / "ambiguous.json", {"unit": "volt"})
    write_json(folder / "dropped.json", {"nothing": "henry"})
    rows = {}
    for name, path in outputs.items():
        output = folder / f"chunks/{name}.parquet"
        pack_chunks(
            path, folder / "glossary.json", folder / "alt2main.json", folder / "ambiguous.json",
            folder / "dropped.json", output, language="en", max_rejected_fraction=1.0,
        )  # fmt: skip
        rows |= {row["chunk_id"]: row for row in iterate_rows(output)}
    return rows


def rejected_rows(*paths):
    return {
        row["id"]: (row["reason"], row["detail"])
        for path in paths
        for row in map(json.loads, rejected_path(path).read_text(encoding="utf-8").splitlines())
    }


@pytest.mark.parametrize("name", ["chunks.json", "chunks.jsonl"])
def test_a_list_and_lines_become_chunks_with_their_audio_and_main_terms(tmp_path, write_wav, name):
    wav = write_wav("a.wav", seconds=1.0, rate=8000)
    entries = [
        entry(terms=["Big-Apple", "ohm"]),
        entry("POD1_S0002", terms=[], term_chunk_text="nothing", term_start_time=None, term_end_time=0),
        entry("x", recording_id="r9", speaker_id="eve", term_chunk_audio=str(wav)),
    ]
    chunks = packed(tmp_path, deal(tmp_path, entries, name))
    first, second, third = (chunks[name] for name in sorted(chunks))
    assert [row["segment_id"] for row in (first, second, third)] == ["POD1_S0001", "POD1_S0002", "x"]
    assert (first["term"], first["main_term"], first["other_terms"]) == ("big apple", "new york", ["ohm"])
    assert first["touched_terms"] == ["new york", "ohm", "volt"]
    assert (first["recording_id"], first["speaker_id"], first["text"]) == ("POD1", "POD1", "the ohm is a unit")
    assert (first["start_s"], first["term_end_s"]) == (3.0, 3.6)
    assert np.abs(decode_audio(first["audio"]["bytes"]) - read_audio(wav)).max() <= 1 / 32768
    assert (second["has_term"], second["main_term"], second["term_start_s"]) == (False, None, None)
    assert second["touched_terms"] == ["henry"]
    assert (third["recording_id"], third["speaker_id"]) == ("r9", "eve")
    summary = read_json(tmp_path / "manifest.json")
    assert (summary["kept"], summary["without_speaker"]) == (3, 2)


@pytest.mark.parametrize("open_shards", [1, 250])
def test_chunks_of_a_recording_share_a_shard_however_many_are_open_at_once(tmp_path, monkeypatch, open_shards):
    monkeypatch.setattr(from_file, "OPEN_SHARDS", open_shards)
    entries = [entry(f"POD{number % 7}_S{number:04d}") for number in range(70)]
    outputs = deal(tmp_path, entries, shards=3)
    homes = {}
    for name, path in outputs.items():
        for row in iterate_rows(path):
            homes.setdefault(row["recording_id"], set()).add(name)
    assert len(homes) == 7
    assert all(len(found) == 1 for found in homes.values())
    assert sum(table_counts(path)["kept"] for path in outputs.values()) == 70


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "broken_entry"), (entry("s", term_chunk_audio=None), "broken_entry"),
        (entry("s", term_chunk_text=3), "broken_entry"), (entry("s", terms=["\udc80"]), "broken_entry"),
        (entry("s", terms=[1]), "broken_entry"),
        (entry("../evil"), "bad_id"), (entry("s", speaker_id="a b"), "bad_id"), (entry(7), "bad_id"),
        (entry("s", term_start_time="now"), "bad_time"), (entry("s", term_start_time=2.0), "bad_time"),
        (entry("s", term_end_time=3.1), "bad_time"), (entry("s", extended_end_time=10**400), "bad_time"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_rejected_with_its_place(tmp_path, bad, reason):
    deal(tmp_path, [entry(), bad, entry("POD2_S1")])
    [(found, detail)] = rejected_rows(tmp_path / "manifest.json").values()
    assert found == reason
    assert detail.startswith(f"{tmp_path / 'chunks.json'}, entry 2: ")


HOSTILE_IDS = [
    "../../../evil", "/etc/evil", "..", "-rf", 'quo"ted', "a\\b", "new\nline", "ta\tb", "NUL\0", "😀", "$(touch evil)",
    "e\u0301", "\u202egnp", "\ud800", "x" * 10_000, "",
]  # fmt: skip


@pytest.mark.parametrize("name", ["segment_id", "recording_id", "speaker_id"])
@pytest.mark.parametrize("file", ["chunks.json", "chunks.jsonl"])
def test_ids_that_could_hurt_a_file_system_or_shell_are_rejected_row_by_row(tmp_path, name, file):
    outputs = deal(
        tmp_path, [entry(), *(entry(f"s{n}") | {name: bad} for n, bad in enumerate(HOSTILE_IDS))], file, allowed=1.0
    )
    assert sum(table_counts(path)["kept"] for path in outputs.values()) == 1
    lines = rejected_path(tmp_path / "manifest.json").read_text(encoding="utf-8").splitlines()
    # orjson takes half of a surrogate pair for broken JSON, Python's own reader for a character.
    assert {json.loads(line)["reason"] for line in lines} <= {"bad_id", "broken_entry"}
    assert len(lines) == len(HOSTILE_IDS)
    assert read_json(tmp_path / "manifest.json")["reasons"]["bad_id"] >= len(HOSTILE_IDS) - 1


@pytest.mark.parametrize(
    "name", ["segment_id", "term_chunk_audio", "term_chunk_text", "term_chunk_audio_ground_truth_terms", "speaker_id",
             "term_start_time"],
)  # fmt: skip
def test_a_value_nested_a_thousand_times_is_rejected(tmp_path, name):
    nested = json.dumps(entry("s") | {name: "HERE"}).replace('"HERE"', "[" * 1000 + "]" * 1000)
    (tmp_path / "chunks.jsonl").write_text(f"{json.dumps(entry())}\n{nested}\n")
    output = tmp_path / "0000.parquet"
    deal_entries(
        [tmp_path / "chunks.jsonl"], {"0000": output}, tmp_path / "m.json", recording_pattern=None,
        max_rejected_fraction=0.5,
    )  # fmt: skip
    assert table_counts(output)["kept"] == 1


@pytest.mark.parametrize(
    "audio", ["x" * 10_000, "../" * 500 + "a.wav", "$(touch evil)", "new\nline.wav", "/dev/zero", "/proc/self/mem", "."]
)
def test_an_audio_path_that_is_no_file_is_rejected(tmp_path, audio):
    chunks = deal(tmp_path, [entry("s", term_chunk_audio=audio)], pattern=None, shards=1)
    assert packed(tmp_path, chunks) == {}
    [(reason, _)] = rejected_rows(tmp_path / "chunks/0000.parquet").values()
    assert reason == "unreadable_audio"


def test_bad_audio_and_unknown_terms_are_rejected_when_chunks_are_packed(tmp_path, write_wav):
    write_wav("a.wav", seconds=1.0)
    write_wav("long.wav", seconds=1.2)
    write_wav("nan.wav", samples=np.full(16_000, np.nan), subtype="FLOAT")
    entries = [
        entry("ok"), entry("term", terms=["henry"]), entry("gone", term_chunk_audio="gone.wav"),
        entry("long", term_chunk_audio="long.wav"), entry("nan", term_chunk_audio="nan.wav"),
        entry("hidden", terms=[], term_chunk_text="in New York"), entry("alias", terms=[], term_chunk_text="a unit"),
    ]  # fmt: skip
    outputs = deal(tmp_path, entries, pattern=None)
    assert [row["segment_id"] for row in packed(tmp_path, outputs).values()] == ["ok"]
    found = rejected_rows(*(tmp_path / f"chunks/{name}.parquet" for name in outputs))
    assert {name.split("-")[0]: reason for name, (reason, _) in found.items()} == {
        "term": "unknown_term", "gone": "unreadable_audio", "long": "wrong_duration", "nan": "not_finite",
        "hidden": "term_in_no_term_chunk", "alias": "term_in_no_term_chunk",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"segment_id": "a"', "not whole JSON"), ('{"a": 1}', "not whole JSON"), ("[]", "no entry"),
        ("", "not whole JSON"), ("[1, nope]", "not whole JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_is_refused(tmp_path, content, message):
    path = tmp_path / "chunks.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        deal_entries(
            [path], {"0000": tmp_path / "0.parquet"}, tmp_path / "m.json", recording_pattern=None,
            max_rejected_fraction=1.0,
        )  # fmt: skip


def test_a_chunk_that_comes_twice_is_taken_once_and_ids_do_not_depend_on_what_comes_before(tmp_path):
    outputs = deal(tmp_path, [entry(), entry("POD2_S1"), entry()])
    assert rejected_rows(tmp_path / "manifest.json")["POD1_S0001"][0] == "duplicate_entry"
    ids = {row["chunk_id"] for path in outputs.values() for row in iterate_rows(path)}
    (tmp_path / "other").mkdir()
    moved = [
        row | {"term_chunk_audio": str(tmp_path / "a.wav")} for row in (entry("POD3_S1"), entry("POD2_S1"), entry())
    ]
    more = {row["chunk_id"] for path in deal(tmp_path / "other", moved).values() for row in iterate_rows(path)}
    assert ids < more


def test_half_of_the_entries_bad_fails_the_stage(tmp_path):
    with pytest.raises(TooManyRejectedError, match="2 of 4 entries"):
        deal(tmp_path, [entry(), "bad", "bad", entry("POD2_S1")], allowed=0.1)


@pytest.mark.parametrize("pattern", ["(", "POD", "^ZZZ(.+)$"])
def test_a_pattern_that_cannot_work_is_refused(tmp_path, pattern):
    with pytest.raises(EarmarkError, match=r"chunks\.recording_pattern"):
        deal(tmp_path, [entry()], pattern=pattern)


@pytest.mark.parametrize("shard_rows", [None, 1, 3, 4, 6, 7])
def test_a_run_written_out_and_read_back_keeps_speakers_recordings_and_terms(tmp_path, write_wav, shard_rows):
    write_wav("a.wav", seconds=1.0)
    spoken = [
        ["Ohm"],
        ["Big Apple", "ohm"],
        [],
        ["volt", "Big-Apple", "new york"],
        ["unit"],
        ["New York", "ohm", "volt"],
    ]
    entries = [
        entry(f"s{n}", terms, term_chunk_text="x y", speaker_id=f"spk{n % 2}", recording_id=f"rec{n % 3}")
        for n, terms in enumerate(spoken)
    ]
    outputs = deal(tmp_path, entries, pattern=None)
    before = packed(tmp_path, outputs)
    chunks = [tmp_path / f"chunks/{name}.parquet" for name in outputs]
    folders = [tmp_path / f"wavs/{path.stem}" for path in chunks]
    for path, folder in zip(chunks, folders, strict=True):
        write_wavs(path, folder)
    if shard_rows is None:
        files = [tmp_path / "merged.json"]
        write_interchange(chunks, folders, files[0], context_s=1.0)
    else:
        write_interchange_shards(chunks, folders, tmp_path / "shards", context_s=1.0, shard_rows=shard_rows)
        files = sorted((tmp_path / "shards").iterdir())
    again = {name: tmp_path / f"again/{name}.parquet" for name in outputs}
    deal_entries(files, again, tmp_path / "again.json", recording_pattern=None, max_rejected_fraction=0.0)
    after = packed(tmp_path, again)
    kept = (
        "segment_id", "recording_id", "speaker_id", "has_term", "main_term", "other_terms", "touched_terms", "text",
        "start_s", "end_s", "term_start_s", "term_end_s",
    )  # fmt: skip

    def by_segment(rows):
        return {row["segment_id"]: {name: row[name] for name in kept} for row in rows.values()}

    assert by_segment(after) == by_segment(before)
    terms = {
        name: [row["main_term"], *row["other_terms"]] for name, row in by_segment(after).items() if row["has_term"]
    }
    assert terms == {
        "s0": ["ohm"], "s1": ["new york", "ohm"], "s3": ["volt", "new york"], "s4": ["volt"],
        "s5": ["new york", "ohm", "volt"],
    }  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_arbitrary_bytes_give_rejected_rows_or_one_sentence(tmp_path, data):
    for name in ("fuzz.json", "fuzz.jsonl"):
        (tmp_path / name).write_bytes(data)
        try:
            deal_entries(
                [tmp_path / name], {"0000": tmp_path / "0.parquet"}, tmp_path / "m.json", recording_pattern=None,
                max_rejected_fraction=1.0,
            )  # fmt: skip
        except InputError as error:
            assert str(tmp_path / name) in str(error)


def test_a_pattern_cannot_make_a_recording_that_leaves_its_folder(tmp_path):
    deal(tmp_path, [entry("x_.._S0001"), entry("x_pod_S0001")], pattern=r"^[^_]+_(.+)_S\d+$")
    rejected = [json.loads(line) for line in (tmp_path / "manifest.rejected.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rejected] == ["bad_id"]


def test_a_term_that_sticks_out_by_a_rounding_error_is_inside(tmp_path):
    deal(tmp_path, [entry(term_end_time=entry()["extended_end_time"] + 2e-7)], allowed=0.0)
