"""Training speakers dealt out to folds: nobody is ranked by who has heard them, and nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.artifacts import SPLITS, iterate_rows, read_table, rejected_path, table_counts, write_table
from earmark.chunks.folds import deal_speakers, fold_splits
from earmark.errors import ConfigError

SPEAKERS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 400), min_size=2, max_size=30)


@given(SPEAKERS, st.data())
def test_every_speaker_is_in_one_fold_and_folds_differ_by_no_more_than_one_speakers_chunks(
    chunks: dict[str, int], data: st.DataObject
) -> None:
    folds = data.draw(st.integers(2, len(chunks)))
    fold_of = deal_speakers(chunks, folds)
    assert fold_of.keys() == chunks.keys()
    assert set(fold_of.values()) == set(range(folds))
    sizes = Counter[int]()
    for speaker, fold in fold_of.items():
        sizes[fold] += chunks[speaker]
    assert max(sizes.values()) - min(sizes.values()) <= max(chunks.values())
    in_another_order = dict(data.draw(st.permutations(sorted(chunks.items()))))
    assert deal_speakers(in_another_order, folds) == fold_of


def test_four_speakers_are_dealt_the_largest_first() -> None:
    assert deal_speakers({"ann": 40, "bob": 30, "cat": 30, "dan": 15}, 2) == {"ann": 0, "bob": 1, "cat": 1, "dan": 0}


@pytest.mark.parametrize(
    ("speakers", "cure"), [(1, "set evaluate.held_out_chunks and speech_llm.hints to 0"), (2, "lower train.folds")]
)
def test_fewer_speakers_than_folds_are_an_error_that_says_how_many_there_are(speakers: int, cure: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.folds is 3, but .* have {speakers} speakers.*{cure}"):
        deal_speakers({f"s{number}": 5 for number in range(speakers)}, 3)


def row(chunk_id: str, speaker: str, term: str | None, *others: str, recording: str | None = None) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id,
        "shard": "0000",
        "segment_id": chunk_id,
        "recording_id": recording or f"of-{speaker}",
        "speaker_id": speaker,
        "term": term,
        "main_term": term,
        "has_term": term is not None,
        "other_terms": list(others),
        "seen_term": None if term is None else True,
        "text": "x",
        "duration_s": 1.0,
    }


def folds_of(folder: Path, train: list[dict[str, Any]], dev: list[dict[str, Any]], folds: int) -> Path:
    for name, rows in (("train", train), ("dev", dev)):
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    fold_splits(folder / "train.parquet", folder / "dev.parquet", folder / "folds", folds=folds)
    return folder / "folds"


ROWS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["oslo", "rome", None]), st.sampled_from(["", "r1", "r2"])),
    max_size=30,
)


@given(rows=ROWS)
def test_every_training_chunk_is_held_out_once_from_who_has_heard_neither_its_speaker_nor_its_recording(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None, str]]
) -> None:
    # Each has a recording of its own, so that there is always something to train on.
    spoken = [*((speaker, "oslo", "") for speaker in "abcde"), *rows]
    train = [row(f"c{i}", who, term, recording=where or None) for i, (who, term, where) in enumerate(spoken)]
    folder = folds_of(tmp_path_factory.mktemp("folds"), train, [row("d", "dev", "oslo")], 2)
    held_out = Counter[str]()
    for fold in ("0", "1"):
        of = {name: list(iterate_rows(folder / fold / f"{name}.parquet")) for name in ("train", "held_out", "dev")}
        held_out.update(found["chunk_id"] for found in of["held_out"])
        for column in ("speaker_id", "recording_id"):
            heard = {found[column] for found in of["train"]}
            assert heard.isdisjoint(found[column] for found in of["held_out"])
        counts = table_counts(folder / fold / "train.parquet")
        assert counts["input"] == counts["kept"] + counts["rejected"] == len(train) - len(of["held_out"])
        heard = {found["main_term"] for found in of["train"]}
        for found in (*of["train"], *of["held_out"], *of["dev"]):
            assert found["seen_term"] == (found["main_term"] in heard if found["has_term"] else None)
    assert held_out == Counter(found["chunk_id"] for found in train)


def test_a_chunk_in_whose_recording_a_held_out_speaker_speaks_is_left_out_with_its_reason(tmp_path: Path) -> None:
    train = [
        row("c0", "ann", "oslo"),
        row("c1", "ann", "rome", recording="call"),
        row("c2", "bob", "oslo", "lima", recording="call"),
        row("c3", "bob", "bonn"),
    ]
    folder = folds_of(tmp_path, train, [row("d0", "dev", "bonn"), row("d1", "dev", "lima"), row("d2", "dev", None)], 2)
    assert read_table(folder / "0/held_out.parquet")["chunk_id"].to_pylist() == ["c0", "c1"]
    assert read_table(folder / "0/train.parquet")["chunk_id"].to_pylist() == ["c3"]
    (rejected,) = map(json.loads, rejected_path(folder / "0/train.parquet").open(encoding="utf-8"))
    assert (rejected["id"], rejected["reason"]) == ("c2", "shared_recording")
    # "lima" was heard in the chunk that is left out alone.
    assert read_table(folder / "0/dev.parquet")["seen_term"].to_pylist() == [True, False, None]
    assert read_table(folder / "1/dev.parquet")["seen_term"].to_pylist() == [False, False, None]


def test_speakers_who_all_meet_in_every_recording_are_an_error_that_says_so(tmp_path: Path) -> None:
    train = [row("c0", "ann", "oslo", recording="call"), row("c1", "bob", "oslo", recording="call")]
    with pytest.raises(ConfigError, match=r"every recording holds a speaker of fold 0 \(ann\)"):
        folds_of(tmp_path, train, [], 2)
