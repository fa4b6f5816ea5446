"""Training speakers dealt out to folds: nobody is ranked by who has heard them, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.artifacts import SPLITS, iterate_rows, read_table, write_table
from earmark.chunks.folds import deal_groups, fold_splits
from earmark.errors import ConfigError

GROUPS = st.dictionaries(st.integers(0, 99), st.integers(1, 400), min_size=2, max_size=30)


@given(GROUPS, st.data())
def test_every_group_is_in_one_fold_and_folds_differ_by_no_more_than_one_groups_chunks(
    chunks: dict[int, int], data: st.DataObject
) -> None:
    folds = data.draw(st.integers(2, len(chunks)))
    fold_of = deal_groups(chunks, folds)
    assert fold_of.keys() == chunks.keys()
    assert set(fold_of.values()) == set(range(folds))
    sizes = Counter[int]()
    for group, fold in fold_of.items():
        sizes[fold] += chunks[group]
    assert max(sizes.values()) - min(sizes.values()) <= max(chunks.values())
    in_another_order = dict(data.draw(st.permutations(sorted(chunks.items()))))
    assert deal_groups(in_another_order, folds) == fold_of


def test_four_groups_are_dealt_the_largest_first() -> None:
    assert deal_groups({0: 40, 1: 30, 2: 30, 3: 15}, 2) == {0: 0, 1: 1, 2: 1, 3: 0}


@pytest.mark.parametrize(
    ("speakers", "cure"), [(1, "set evaluate.held_out_chunks and speech_llm.hints to 0"), (2, "lower train.folds")]
)
def test_fewer_speakers_than_folds_are_an_error_that_says_how_many_there_are(speakers: int, cure: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.folds is 3, but .* have {speakers} speakers.*{cure}"):
        deal_groups(dict.fromkeys(range(speakers), 5), 3)


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
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["oslo", "rome", None]), st.sampled_from(["", "", "r1", "r2"])),
    max_size=12,
)


@given(rows=ROWS)
def test_every_training_chunk_is_held_out_once_from_who_has_heard_neither_its_speaker_nor_its_recording(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None, str]]
) -> None:
    # Speakers a to e may meet in recordings; f meets nobody, so that there are two groups.
    spoken = [*((speaker, "oslo", "") for speaker in "abcdef"), *rows]
    train = [row(f"c{i}", who, term, recording=where or None) for i, (who, term, where) in enumerate(spoken)]
    folder = folds_of(tmp_path_factory.mktemp("folds"), train, [row("d", "dev", "oslo")], 2)
    held_out = Counter[str]()
    for fold in ("0", "1"):
        of = {name: list(iterate_rows(folder / fold / f"{name}.parquet")) for name in ("train", "held_out", "dev")}
        held_out.update(found["chunk_id"] for found in of["held_out"])
        assert len(of["train"]) + len(of["held_out"]) == len(train)
        for column in ("speaker_id", "recording_id"):
            heard = {found[column] for found in of["train"]}
            assert heard.isdisjoint(found[column] for found in of["held_out"])
        heard = {found["main_term"] for found in of["train"]}
        for found in (*of["train"], *of["held_out"], *of["dev"]):
            assert found["seen_term"] == (found["main_term"] in heard if found["has_term"] else None)
    assert held_out == Counter(found["chunk_id"] for found in train)


def test_who_meet_in_a_recording_are_held_out_together(tmp_path: Path) -> None:
    train = [
        *(row(f"a{i}", "ann", "oslo", recording="call 1") for i in range(10)),
        *(row(f"b{i}", "bob", "lima", recording="call 1") for i in range(9)),
        *(row(f"c{i}", "cat", "oslo", recording="call 2") for i in range(8)),
        *(row(f"d{i}", "dan", "rome", recording="call 2") for i in range(7)),
    ]
    dev = [row("e0", "eve", "oslo"), row("e1", "eve", "lima"), row("e2", "eve", None)]
    folder = folds_of(tmp_path, train, dev, 2)
    held_out = [set(read_table(folder / f"{fold}/held_out.parquet")["speaker_id"].to_pylist()) for fold in range(2)]
    assert held_out == [{"ann", "bob"}, {"cat", "dan"}]
    assert read_table(folder / "0/dev.parquet")["seen_term"].to_pylist() == [True, False, None]
    assert read_table(folder / "1/dev.parquet")["seen_term"].to_pylist() == [True, True, None]


def test_a_host_whom_all_meet_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    train = [row(f"{guest}{who}", who, "oslo", recording=guest) for guest in ("ann", "bob") for who in (guest, "host")]
    with pytest.raises(ConfigError, match=r"have 1 speakers, or groups of speakers who share recordings.* to 0"):
        folds_of(tmp_path, train, [row("d", "dev", "oslo")], 2)


def test_a_fold_that_hears_no_term_of_dev_is_an_error_that_names_it(tmp_path: Path) -> None:
    train = [row("c0", "ann", "oslo"), row("c1", "bob", "rome")]
    with pytest.raises(ConfigError, match=r"without the speakers of fold 0 of 2 \(ann\) .* raise train\.folds, or set"):
        folds_of(tmp_path, train, [row("d", "dev", "oslo")], 2)
