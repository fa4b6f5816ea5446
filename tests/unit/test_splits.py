import json
from collections import Counter

import pyarrow as pa
import pytest

from earmark.artifacts import CHUNKS, iterate_rows, table_counts, write_json, write_table
from earmark.chunks import splits as splits_module
from earmark.chunks.splits import SPLIT_NAMES, make_rule, split_chunks
from earmark.errors import ConfigError

SPEAKERS = {f"speaker{number}" for number in range(400)}


def rule(speakers=SPEAKERS, terms=frozenset({"ohm", "new york"}), **changes):
    settings = {"test_speakers": 0.2, "dev_speakers": 0.1, "unseen_terms": [], "seed": 1} | changes
    return make_rule(set(speakers), set(terms), **settings)


def chunk(speaker, main_term, *others, number=0):
    return {
        "chunk_id": f"{speaker}-{main_term}-{number}",
        "segment_id": "s",
        "recording_id": f"recording of {speaker}",
        "speaker_id": speaker,
        "term": main_term,
        "main_term": main_term,
        "has_term": main_term is not None,
        "other_terms": list(others),
        "touched_terms": [term for term in (main_term, *others) if term],
        "text": "x",
        "language": "en",
        "start_s": 1.0,
        "end_s": 2.5,
        "sample_rate": 16_000,
        "audio": {"bytes": b"", "path": ""},
    }


def split(folder, shards, **changes):
    paths = {}
    for name, rows in shards.items():
        paths[name] = folder / f"{name}.parquet"
        write_table(paths[name], pa.Table.from_pylist(rows, schema=CHUNKS))
    write_json(folder / "glossary.json", {"ohm": {}, "volt": {}, "new york": {}})
    settings = {"test_speakers": ["tina"], "dev_speakers": ["dave"], "unseen_terms": ["volt"], "seed": 1}
    settings |= {"max_chunks_per_term": None} | changes
    split_chunks(paths, folder / "glossary.json", folder / "splits", **settings)
    return {name: list(iterate_rows(folder / f"splits/{name}.parquet")) for name in SPLIT_NAMES}


SHARDS = {
    "0001": [chunk("tina", "ohm"), chunk("anna", "ohm"), chunk("anna", "volt"), chunk("anna", "new york", "volt")],
    "0000": [
        chunk("dave", "ohm"),
        chunk("dave", "volt"),
        chunk("tina", "volt"),
        chunk("tina", None),
        chunk("anna", None),
    ],
}


def test_a_speaker_is_in_one_split_and_every_chunk_is_kept_or_accounted_for(tmp_path):
    splits = split(tmp_path, SHARDS)
    assert {name: {row["speaker_id"] for row in rows} for name, rows in splits.items()} == {
        "train": {"anna"}, "dev": {"dave"}, "test": {"tina"},
    }  # fmt: skip
    counts = [table_counts(tmp_path / f"splits/{name}.parquet") for name in SPLIT_NAMES]
    assert sum(part["input"] for part in counts) == 9
    assert [part["reasons"] for part in counts] == [{"unseen_term": 2}, {"unseen_term": 1}, {}]


def test_unseen_terms_are_absent_from_train_and_dev_also_as_other_terms(tmp_path):
    splits = split(tmp_path, SHARDS)
    for name in ("train", "dev"):
        for row in splits[name]:
            assert "volt" not in [row["main_term"], *row["other_terms"]]
    assert {row["main_term"]: row["seen_term"] for row in splits["test"]} == {"ohm": True, "volt": False, None: None}
    rejected = [json.loads(line) for line in (tmp_path / "splits/train.rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == ["anna-volt-0", "anna-new york-0"]
    assert all(row["detail"] == "part of the unseen term 'volt' is spoken in it" for row in rejected)


def test_split_rows_say_where_their_audio_is(tmp_path):
    [row] = split(tmp_path, SHARDS)["dev"]
    assert (row["shard"], row["chunk_id"], row["duration_s"], row["seen_term"]) == ("0000", "dave-ohm-0", 1.5, True)


def test_an_unseen_term_may_be_written_as_it_is_displayed(tmp_path):
    splits = split(tmp_path, SHARDS, unseen_terms=["New-York"])
    assert "new york" not in {row["main_term"] for row in splits["train"]}


def test_shares_are_about_as_large_as_asked_for_and_disjoint():
    found = rule()
    assert 0.14 < len(found.test_speakers) / len(SPEAKERS) < 0.26
    assert 0.06 < len(found.dev_speakers) / len(SPEAKERS) < 0.15
    assert not found.test_speakers & found.dev_speakers


def test_adding_speakers_moves_nobody():
    before, after = rule(), rule(SPEAKERS | {f"new{number}" for number in range(300)})
    assert before.test_speakers == after.test_speakers & SPEAKERS
    assert before.dev_speakers == after.dev_speakers & SPEAKERS


def test_another_seed_draws_other_speakers():
    assert rule().test_speakers != rule(seed=2).test_speakers


def test_a_zero_share_takes_nobody():
    found = rule(test_speakers=0.0, dev_speakers=0, unseen_terms=0.0)
    assert not found.test_speakers | found.dev_speakers | found.unseen_terms


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_speakers": ["nobody"]}, "splits.test_speakers: 'nobody' does not occur among the speakers"),
        ({"dev_speakers": ["nobody"]}, "splits.dev_speakers: 'nobody' does not occur among the speakers"),
        ({"unseen_terms": ["nothing"]}, "splits.unseen_terms: 'nothing' does not occur in the glossary"),
        (
            {"test_speakers": ["speaker1"], "dev_speakers": ["speaker1"]},
            "splits.dev_speakers: 'speaker1' is a test speaker too",
        ),
        ({"test_speakers": 0.999, "dev_speakers": sorted(SPEAKERS)}, "is a test speaker too"),
    ],
)
def test_a_name_that_cannot_be_used_is_a_config_error(changes, says):
    with pytest.raises(ConfigError) as caught:
        rule(**changes)
    assert says in str(caught.value)


def test_a_chunk_that_only_touches_an_unseen_term_is_kept_out_of_training(tmp_path):
    cut_off = chunk("anna", "ohm", number=1) | {"touched_terms": ["ohm", "volt"]}
    splits = split(tmp_path, {**SHARDS, "0002": [cut_off]})
    assert cut_off["chunk_id"] not in {row["chunk_id"] for row in splits["train"]}


def test_a_term_that_training_never_heard_is_not_seen_though_nobody_listed_it(tmp_path):
    splits = split(tmp_path, {**SHARDS, "0002": [chunk("tina", "new york")]}, unseen_terms=[])
    only_ohm = [chunk("anna", "ohm"), chunk("dave", "ohm"), chunk("tina", "new york"), chunk("tina", "ohm")]
    assert {row["main_term"]: row["seen_term"] for row in splits["test"]}["new york"] is True
    splits = split(tmp_path, {"0000": only_ohm}, unseen_terms=[])
    assert {row["main_term"]: row["seen_term"] for row in splits["test"]} == {"new york": False, "ohm": True}


def test_no_speaker_left_to_train_on_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="none is left to train on"):
        split(tmp_path, SHARDS, test_speakers=["tina", "anna"])


def test_a_share_that_no_hash_falls_into_still_gives_one_speaker():
    found = rule(["a", "b", "c"], test_speakers=0.001, dev_speakers=0.001)
    assert len(found.test_speakers) == len(found.dev_speakers) == 1
    assert not found.test_speakers & found.dev_speakers


def test_a_recording_of_a_test_speaker_trains_nothing_whoever_else_speaks_in_it(tmp_path):
    shared = [
        chunk("anna", "ohm", number=1) | {"recording_id": "talk"},
        chunk("dave", "ohm") | {"recording_id": "talk"},
    ]
    shared += [chunk("tina", "ohm") | {"recording_id": "talk"}, chunk("anna", "ohm", number=2)]
    splits = split(tmp_path, {"0000": shared})
    assert [row["chunk_id"] for rows in splits.values() for row in rows] == ["anna-ohm-2", "tina-ohm-0"]
    counts = {name: table_counts(tmp_path / f"splits/{name}.parquet") for name in SPLIT_NAMES}
    assert [counts[name]["reasons"] for name in SPLIT_NAMES] == [{"shared_recording": 1}, {"shared_recording": 1}, {}]


def many(speaker, term, count):
    return [chunk(speaker, term, number=number) for number in range(count)]


def test_a_frequent_term_is_cut_to_the_limit_and_no_term_chunks_in_proportion(tmp_path):
    rows = [*many("anna", "ohm", 30), *many("anna", "new york", 4), *many("anna", None, 34), *many("tina", "ohm", 12)]
    splits = split(tmp_path, {"0000": rows[::2], "0001": rows[1::2]}, max_chunks_per_term=10, dev_speakers=[])
    counted = {name: Counter(row["main_term"] for row in kept) for name, kept in splits.items()}
    assert counted == {"train": {"ohm": 10, "new york": 4, None: 14}, "dev": {}, "test": {"ohm": 10}}
    reasons = table_counts(tmp_path / "splits/train.parquet")["reasons"]
    assert reasons == {"over_term_limit": 20, "over_no_term_limit": 20}


def test_which_chunks_stay_within_the_limit_does_not_depend_on_shards_or_on_other_terms(tmp_path):
    rows = many("anna", "ohm", 30)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = split(tmp_path / "a", {"0000": rows}, max_chunks_per_term=5, test_speakers=[], dev_speakers=[])["train"]
    other = [*many("anna", "new york", 9), *rows[::-1]]
    second = split(
        tmp_path / "b",
        {"0001": other[:20], "0000": other[20:]},
        max_chunks_per_term=5,
        test_speakers=[],
        dev_speakers=[],
    )["train"]
    kept = {row["chunk_id"] for row in first}
    assert kept == {row["chunk_id"] for row in second if row["main_term"] == "ohm"}


def test_rows_are_split_alike_however_many_are_looked_at_at_once(tmp_path, monkeypatch):
    rows = [
        *many("anna", "ohm", 9),
        chunk("anna", "new york", "volt"),
        *many("anna", None, 7),
        *many("tina", "volt", 3),
    ]
    rows += [chunk("dave", "ohm") | {"recording_id": "recording of tina"}, *many("dave", "new york", 4)]
    found = []
    for batch_rows in (65_536, 2):
        monkeypatch.setattr(splits_module, "_BATCH_ROWS", batch_rows)
        splits = split(tmp_path, {"0000": rows[::2], "0001": rows[1::2]}, max_chunks_per_term=3)
        rejected = [(tmp_path / f"splits/{name}.rejected.jsonl").read_text() for name in SPLIT_NAMES]
        found.append((splits, rejected))
    assert found[0] == found[1]
    reasons = {json.loads(line)["reason"] for text in found[0][1] for line in text.splitlines()}
    assert reasons == {"shared_recording", "unseen_term", "over_term_limit", "over_no_term_limit"}
