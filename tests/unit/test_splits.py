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


def talks(speaker, count):
    """Five chunks in each of a speaker's recordings, one of them without a term and one of the unseen "volt"."""
    return [
        chunk(speaker, term, number=number)
        | {"recording_id": f"{speaker} talk {number}", "chunk_id": f"{speaker} {number} {n}"}
        for number in range(count)
        for n, term in enumerate(["ohm", "ohm", "new york", "volt", None])
    ]


def test_a_share_of_the_training_speakers_recordings_goes_to_test_whole_and_the_others_stay(tmp_path):
    rows = [*talks("anna", 100), *talks("bert", 100), *talks("dave", 20), *talks("tina", 20)]
    without = split(tmp_path, {"0000": rows[::2], "0001": rows[1::2]})
    splits = split(tmp_path, {"0000": rows[::2], "0001": rows[1::2]}, test_recordings=0.2)
    recordings = {name: {row["recording_id"] for row in kept} for name, kept in splits.items()}
    drawn = {row["recording_id"] for row in splits["test"] if row["speaker_id"] in ("anna", "bert")}
    assert 0.12 < len(drawn) / 200 < 0.28
    assert not recordings["train"] & recordings["test"]
    assert recordings["train"] | drawn == {f"{speaker} talk {n}" for speaker in ("anna", "bert") for n in range(100)}
    # What is an unseen term to training may be spoken in a recording that training does not hear.
    assert {row["seen_term"] for row in splits["test"] if row["main_term"] == "volt"} == {False}
    assert sum(row["recording_id"] in drawn for row in splits["test"]) == 5 * len(drawn)
    assert splits["dev"] == without["dev"]
    assert [row for row in splits["test"] if row["speaker_id"] == "tina"] == without["test"]
    counts = [table_counts(tmp_path / f"splits/{name}.parquet") for name in SPLIT_NAMES]
    assert sum(part["input"] for part in counts) == len(rows)
    assert all(part["kept"] + part["rejected"] == part["input"] for part in counts)
    ids = [row["chunk_id"] for kept in splits.values() for row in kept]
    assert len(ids) == len(set(ids))


def test_adding_speakers_and_recordings_moves_no_recording(tmp_path):
    rows, drawn = talks("anna", 60), []
    for more in ([], [*talks("bert", 30), *talks("anna", 90)[300:], *talks("tina", 5)]):
        tested = split(tmp_path, {"0000": [*more, *rows]}, test_recordings=0.3, test_speakers=[], dev_speakers=[])[
            "test"
        ]
        drawn.append({row["recording_id"] for row in tested} & {f"anna talk {number}" for number in range(60)})
    assert drawn[0] == drawn[1] != set()


def test_a_recording_that_a_later_speaker_shares_is_never_drawn(tmp_path):
    rows = [*talks("anna", 40), *talks("cora", 40)]
    shared = [row | {"recording_id": f"anna talk {n}", "chunk_id": f"{row['speaker_id']} also {n}"}
              for n in range(40) for row in (chunk("dave", "ohm"), chunk("tina", "ohm"))[: 1 + n % 2]]  # fmt: skip
    splits = split(tmp_path, {"0000": [*rows, *shared]}, test_recordings=0.3)
    assert {row["speaker_id"] for row in splits["test"]} == {"tina", "cora"}
    assert {row["speaker_id"] for row in splits["train"]} == {"cora"}
    alone = split(tmp_path, {"0000": [*rows, *shared]})
    assert splits["dev"] == alone["dev"]


def test_a_recording_that_stands_in_for_a_speaker_is_never_drawn(tmp_path):
    unnamed = [row | {"speaker_id": row["recording_id"]} for row in talks("anna", 50)]
    partly = [row | {"chunk_id": f"also {row['chunk_id']}", "speaker_id": "bert"} for row in unnamed[:100]]
    named = [row | {"recording_id": f"{row['recording_id']}b", "chunk_id": f"b {row['chunk_id']}"} for row in partly]
    splits = split(
        tmp_path, {"0000": [*unnamed, *partly, *named]}, test_recordings=0.3, test_speakers=[], dev_speakers=[]
    )
    assert {row["speaker_id"] for row in splits["test"]} == {"bert"}
    assert all(row["recording_id"].endswith("b") for row in splits["test"])


def test_the_limit_of_a_term_counts_the_drawn_recordings_by_themselves(tmp_path):
    rows = [*talks("anna", 100), *many("tina", "ohm", 30), *many("tina", None, 30)]
    kept = [
        split(tmp_path, {"0000": rows}, max_chunks_per_term=10, dev_speakers=[], test_recordings=share)
        for share in (0.0, 0.3)
    ]
    of_tina = [[row for row in splits["test"] if row["speaker_id"] == "tina"] for splits in kept]
    assert of_tina[0] == of_tina[1]
    of_anna = Counter(row["main_term"] for row in kept[1]["test"] if row["speaker_id"] == "anna")
    assert (of_anna["ohm"], of_anna["volt"]) == (10, 10)


def test_a_share_that_leaves_no_recording_to_train_on_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"splits\.test_recordings: 1\.0 .* none is left to train on"):
        split(tmp_path, SHARDS, test_recordings=1.0)


def test_a_share_that_draws_no_recording_is_told(tmp_path, caplog):
    splits = split(tmp_path, SHARDS, test_recordings=1e-9)
    assert {row["speaker_id"] for row in splits["test"]} == {"tina"}
    assert "splits.test_recordings: 1e-09 of the training speakers' recordings is none" in caplog.text


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


def test_a_quick_look_trains_on_so_many_chunks_in_proportion_and_calls_unseen_what_it_misses(tmp_path, caplog):
    rows = [*many("anna", "ohm", 60), *many("bert", None, 30), *many("cora", "new york", 1), *many("tina", "ohm", 5)]
    rows += [*many("tina", "new york", 2), *many("dave", "ohm", 3)]
    whole, *quick = (
        split(tmp_path, {"0000": rows[::2], "0001": rows[1::2]}, max_train_chunks=limit) for limit in (None, 30, 12, 91)
    )
    kept = [{row["chunk_id"] for row in splits["train"]} for splits in quick]
    assert kept[1] < kept[0] < kept[2] == {row["chunk_id"] for row in whole["train"]}
    assert [Counter(row["has_term"] for row in splits["train"]) for splits in quick[:2]] == [
        {True: 20, False: 10}, {True: 8, False: 4},
    ]  # fmt: skip
    assert "cora-new york-0" not in kept[1], "drawn after all: this test would not see a flag that is wrong"
    assert {row["main_term"]: row["seen_term"] for row in quick[1]["test"]} == {"ohm": True, "new york": False}
    assert {row["main_term"]: row["seen_term"] for row in whole["test"]} == {"ohm": True, "new york": True}
    assert quick[1]["dev"] == whole["dev"] and len(quick[1]["test"]) == len(whole["test"])
    assert "a quick look, training gets 12 of 91 chunks" in caplog.text


def test_a_quick_look_prefers_none_of_what_the_limit_of_a_term_left(tmp_path):
    rows = [*many("anna", "ohm", 3000), *many("anna", "new york", 100)]
    splits = split(
        tmp_path, {"0000": rows}, max_chunks_per_term=100, max_train_chunks=80, test_speakers=[], dev_speakers=[]
    )
    drawn = Counter(row["main_term"] for row in splits["train"])
    assert drawn.total() == 80 and 25 < drawn["ohm"] < 55
    assert table_counts(tmp_path / "splits/train.parquet")["reasons"] == {
        "over_term_limit": 2900,
        "over_train_limit": 120,
    }


def test_rows_are_split_alike_however_many_are_looked_at_at_once(tmp_path, monkeypatch):
    rows = [
        *many("anna", "ohm", 9),
        chunk("anna", "new york", "volt"),
        *many("anna", None, 7),
        *many("tina", "volt", 3),
    ]
    rows += [chunk("dave", "ohm") | {"recording_id": "recording of tina"}, *many("dave", "new york", 4)]
    rows += talks("cora", 6)
    found = []
    for batch_rows in (65_536, 2):
        monkeypatch.setattr(splits_module, "_BATCH_ROWS", batch_rows)
        splits = split(
            tmp_path,
            {"0000": rows[::2], "0001": rows[1::2]},
            max_chunks_per_term=3,
            max_train_chunks=4,
            test_recordings=0.5,
        )
        rejected = [(tmp_path / f"splits/{name}.rejected.jsonl").read_text() for name in SPLIT_NAMES]
        found.append((splits, rejected))
    assert found[0] == found[1]
    reasons = {json.loads(line)["reason"] for text in found[0][1] for line in text.splitlines()}
    assert reasons == {"shared_recording", "unseen_term", "over_term_limit", "over_no_term_limit", "over_train_limit"}
    assert "cora" in {row["speaker_id"] for row in found[0][0]["test"]}
