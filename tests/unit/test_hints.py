"""The retriever's terms in the prompts of conversation lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from earmark.artifacts import RANKINGS, SPLITS, write_json, write_table
from earmark.errors import InputError
from earmark.export.funnel import counts_path
from earmark.export.hints import read_hints
from earmark.export.splits import export_split
from earmark.export.tokenizer import BUNDLED
from earmark.files import read_json

CHUNKS = {  # chunk -> spoken term, whether training hears it, what the retriever ranks first
    "c0": ("oslo", True, ["oslo", "rome", "d c"]),
    "c1": ("d c", False, ["rome", "oslo", "d c"]),
    "c2": ("rome", True, None),  # could not be ranked
    "c3": (None, None, ["added to the index", "d c", "rome"]),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        {
            "chunk_id": chunk_id, "shard": "0000", "segment_id": "s", "recording_id": "rec", "speaker_id": "ann",
            "term": term, "main_term": term, "has_term": term is not None, "other_terms": [], "seen_term": seen,
            "text": "we saw it", "duration_s": 1.0,
        }
        for chunk_id, (term, seen, _) in CHUNKS.items()
    ]  # fmt: skip
    write_table(tmp_path / "train.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    display = {"oslo": "Oslo", "rome": "Rome {terms}", "d c": "Washington, D.C."}
    write_json(tmp_path / "glossary.json", {term: {"term": shown} for term, shown in display.items()})
    ranked = [(chunk_id, top) for chunk_id, (_, _, top) in CHUNKS.items() if top]
    for fold, part in enumerate((ranked[1:], ranked[:1])):
        write_rankings(tmp_path / f"{fold}.parquet", part)
    return tmp_path


def write_rankings(path: Path, ranked: list[tuple[str, list[str]]]) -> None:
    rows = [
        {"chunk_id": chunk_id, "speaker_id": "ann", "top_terms": top, "top_scores": [3.0, 2.0, 1.0]}
        for chunk_id, top in ranked
    ]
    write_table(path, pa.Table.from_pylist(rows, schema=RANKINGS))


def lines(run: Path, count: int | None, *, task: str = "spot_terms") -> list[tuple[str, str]]:
    """(question behind the audio, answer) of each line, with `count` hints; None: written without any word of hints."""
    output = run / "lines/train.jsonl"
    rankings = [run / "0.parquet", run / "1.parquet"]
    hints: dict[str, Any] = {} if count is None else {"hints": read_hints(rankings, count, "Perhaps: {terms}!")}
    export_split(
        run / "train.parquet", run / "glossary.json", {"0000": run / "wavs"}, output,
        format="conversation", task=task, prompt="Which?", tokenizer=BUNDLED, max_rejected_fraction=0.0, **hints,
    )  # fmt: skip
    turns = [json.loads(line)["conversations"] for line in output.open(encoding="utf-8")]
    return [(user["value"].partition("</audio> ")[2], answer["value"]) for user, answer in turns]


def test_the_prompt_goes_on_with_the_first_terms_in_the_retrievers_order_as_the_answer_writes_them(run: Path) -> None:
    assert lines(run, 2) == [
        ("Which? Perhaps: Oslo, Rome {terms}!", "Oslo"),
        ("Which? Perhaps: Rome {terms}, Oslo!", "Washington, D.C."),
        ("Which?", "Rome {terms}"),
        ("Which? Perhaps: added to the index, Washington, D.C.!", "none"),
    ]


def test_a_transcript_is_asked_for_with_the_same_hints(run: Path) -> None:
    questions = [question for question, _ in lines(run, 2)]
    assert lines(run, 2, task="transcribe") == [(question, "we saw it") for question in questions]


def test_without_hints_lines_and_counts_are_as_ever(run: Path) -> None:
    assert {question for question, _ in lines(run, None)} == {"Which?"}
    assert "hints" not in read_json(counts_path(run / "lines/train.jsonl"))


@pytest.mark.parametrize(("count", "seen", "unseen"), [(1, 1, 0), (2, 1, 0), (3, 1, 1)])
def test_counts_tell_how_often_the_spoken_term_is_a_hint_and_who_has_none(
    run: Path, count: int, seen: int, unseen: int
) -> None:
    lines(run, count)
    assert read_json(counts_path(run / "lines/train.jsonl"))["hints"] == {
        "count": count,
        "without_hints": 1,
        "spoken_among_them": {
            "all": {"n": 3, "found": seen + unseen, "value": (seen + unseen) / 3},
            "seen": {"n": 2, "found": seen, "value": seen / 2},
            "unseen": {"n": 1, "found": unseen, "value": float(unseen)},
        },
    }


def test_a_chunk_that_two_retrievers_ranked_is_an_error(run: Path) -> None:
    write_rankings(run / "1.parquet", [("c1", ["oslo", "rome", "d c"])])
    with pytest.raises(InputError, match="chunk c1 is ranked twice"):
        lines(run, 2)


def test_a_hint_prompt_without_a_place_for_the_terms_is_an_error(run: Path) -> None:
    with pytest.raises(InputError, match=r"lacks \{terms\}"):
        read_hints([run / "0.parquet"], 2, "Perhaps!")
