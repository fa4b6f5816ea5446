"""Figures of ranked terms, by whether training hears the speaker: the headline is that of unseen speakers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from earmark.artifacts import SPLITS, read_table, write_table
from earmark.evaluation.ranked import HeldOut, Scorer, Settings, Way, write_figures
from earmark.evaluation.speakers import NO_SEEN_SPEAKER
from earmark.files import read_json
from earmark.retrieval.split_rows import SplitRow

TERMS = ["rome", "oslo", "lima", "paris"]
SURFACES = {term: term for term in TERMS}


def row(speaker: str, number: int) -> SplitRow:
    term = [*TERMS, None][number % 5]
    seen = None if term is None else term != "lima"
    return SplitRow(f"{speaker}-{number}", speaker, term, term, (), seen, "we saw", 1.0 + number % 3)


def score(chunk: SplitRow, main_term: str) -> float:
    """A term's score: by chance, and better where it is spoken."""
    chance = np.random.default_rng([*chunk.chunk_id.encode(), 0, *main_term.encode()]).normal()
    return float(chance + 1.5 * (chunk.main_term == main_term))


def way(surfaces: Mapping[str, str]) -> Scorer:
    terms = list(surfaces.values())

    def scores(rows: Sequence[SplitRow]) -> np.ndarray:
        return np.array([[score(chunk, term) for term in terms] for chunk in rows])

    return Scorer(terms, scores)


def figures(
    folder: Path,
    test: list[SplitRow],
    left_out: list[SplitRow],
    trained: str,
    held_out: Sequence[HeldOut] = (),
    way: Way = way,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """metrics.json and the predictions, where the speaker `trained` is the one in training."""
    words = folder / "words.txt"
    words.write_text("\n".join(f"{a}{b}abc" for a in "bcdfg" for b in "aeiou"))
    heard = [{"chunk_id": "t", "speaker_id": trained, "main_term": term} for term in ("rome", "rome", "oslo", "paris")]
    heard += [
        {"chunk_id": chunk.chunk_id, "speaker_id": chunk.speaker_id, "text": chunk.text}
        for item in held_out
        for chunk in item.rows
    ]
    write_table(folder / "train.parquet", pa.Table.from_pylist(heard, schema=SPLITS))
    for split in ("dev", "test"):  # whose texts alone are read
        write_table(folder / f"{split}.parquet", pa.Table.from_pylist([{"text": "we saw"}], schema=SPLITS))
    settings = Settings(
        false_acceptance=0.2, bootstrap_resamples=30, top_k=2, distractors=[5, 20], word_list=words, seed=0
    )
    rows = {"dev": [row("dave", number) for number in range(40)], "test": test}
    metrics, predictions = folder / "metrics.json", folder / "predictions.parquet"
    write_figures(way, rows, SURFACES, folder, metrics, predictions, settings, {"dev": [], "test": left_out}, held_out)
    return read_json(metrics), read_table(predictions).to_pylist()


TINA, ANNA = [row("tina", number) for number in range(30)], [row("anna", number) for number in range(25)]


def test_chunks_of_seen_speakers_change_no_other_figure_and_have_those_they_would_have_alone(tmp_path: Path) -> None:
    unseen, _ = figures(tmp_path, TINA[:28], TINA[28:], trained="anna")
    both, predictions = figures(tmp_path, [*ANNA[5:], *TINA[:28]], [*ANNA[:5], *TINA[28:]], trained="anna")
    as_unseen, _ = figures(tmp_path, ANNA[5:], ANNA[:5], trained="nobody else")

    for report, before, alone in [
        (both["test"], unseen["test"], as_unseen["test"]),
        *(
            (both["distractors"][count]["test"], unseen["distractors"][count]["test"], larger["test"])
            for count, larger in as_unseen["distractors"].items()
        ),
    ]:
        seen = report.pop("seen_speakers")
        assert before.pop("seen_speakers") == NO_SEEN_SPEAKER
        assert seen == {name: alone[name] for name in seen}
        assert {"retrieval", "rejection"} <= set(seen)
        assert [seen["retrieval"][group]["n"] for group in ("seen", "unseen")] == [12, 4]
    assert both == unseen
    assert both["test"]["without_features"] == 2
    assert {line["chunk_id"] for line in predictions if line["seen_speaker"]} == {chunk.chunk_id for chunk in ANNA[5:]}


@pytest.mark.parametrize("left_out", [[], TINA])
def test_where_all_test_speakers_are_seen_the_headline_has_reasons_and_no_figures(
    tmp_path: Path, left_out: list[SplitRow]
) -> None:
    report, _ = figures(tmp_path, ANNA, left_out, trained="anna")
    test = report["test"]
    assert test["without_features"] == len(left_out)
    assert test["retrieval"]["all"] == {"n": 0, "reason": "no such chunk in this split"}
    assert test["rejection"]["false_acceptance"] is None
    assert test["calibration"]["n"] == 0 and "reason" in test["calibration"]
    assert all(group["n"] == 0 for group in test["by_training_chunks"].values())
    assert test["seen_speakers"]["retrieval"]["all"]["n"] == 20


def test_held_out_training_chunks_help_to_set_the_threshold_and_say_words_that_are_no_distractors(
    tmp_path: Path,
) -> None:
    before, _ = figures(tmp_path, TINA, [], trained="anna")
    searched: list[set[str]] = []

    def other_way(surfaces: Mapping[str, str]) -> Scorer:
        searched.append(set(surfaces))
        own = way(surfaces)
        return Scorer(own.main_terms, lambda rows: own.scores(rows) + 10.0)

    kim = [row("kim", number) for number in range(20)]
    kim[4] = SplitRow("kim-4", "kim", None, None, (), None, "baabc beabc biabc boabc buabc", 1.0)
    after, _ = figures(tmp_path, TINA, [], trained="anna", held_out=[HeldOut(other_way, kim)])
    assert before["set_on"] == {"term_chunks": 32, "no_term_chunks": 8, "no_term_speakers": 1}
    assert after["set_on"] == {"term_chunks": 48, "no_term_chunks": 12, "no_term_speakers": 2}
    # A fifth of twelve, two, are let through: both are among the four that score ten higher than all others.
    assert after["rejection_threshold"] > before["rejection_threshold"] + 5
    assert after["test"]["rejection"]["false_acceptance"] == 0.0
    assert after["test"]["retrieval"] == before["test"]["retrieval"]
    assert after["test"]["calibration"] != before["test"]["calibration"]
    assert [len(surfaces) for surfaces in searched] == [4, 9, 24]
    assert not {word for word in searched[-1] if word.startswith("b")}
    for larger in after["distractors"].values():
        assert larger["rejection_threshold"] > 5


def test_a_chunk_of_two_terms_is_asked_for_both(tmp_path):
    both = [replace(chunk, other_terms=("oslo",)) for chunk in TINA if chunk.main_term == "paris"]
    alone = [chunk for chunk in TINA if chunk.main_term == "rome"]

    def first_oslo_then_the_main_term(surfaces: Mapping[str, str]) -> Scorer:
        terms = list(surfaces.values())
        return Scorer(
            terms,
            lambda rows: np.array([[2 * (t == "oslo") + (t == chunk.main_term) for t in terms] for chunk in rows]),
        )

    report, _ = figures(tmp_path, [*both, *alone], [], "nobody", way=first_oslo_then_the_main_term)
    every = report["test"]["every_term"]
    assert (every["chunks"], every["terms"]) == (12, 18)
    assert every["micro"]["recall@1"]["value"] == pytest.approx(6 / 18)  # oslo, where it is said
    assert every["per_sample"]["recall@1"]["value"] == pytest.approx((6 * 1 / 2 + 6 * 0) / 12)
    assert every["micro"]["recall@5"]["value"] == 1
    assert report["test"]["retrieval"]["all"]["recall@1"]["value"] == pytest.approx(6 / 12)  # there oslo is taken out
