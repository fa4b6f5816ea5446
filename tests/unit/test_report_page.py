"""What the report shows is this run's, not what an earlier configuration or a killed job left in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earmark.evaluation.speakers import NO_SEEN_SPEAKER
from earmark.evaluation.term_answers import Outcome, SaidTerms, answer_figures
from earmark.report.figures import _funnel_sentence, _print_answers
from earmark.report.page import _answering_parts, _rejected_rows


def test_rejected_rows_are_those_of_backends_that_the_run_names(tmp_path: Path) -> None:
    for folder in (
        "models/qwen2_audio",
        "models/.qwen2_audio.training",
        "models/whisper_qwen3",
        "answers/whisper_qwen3",
        "folds/0/index",
        "folds/1/index",
    ):
        path = tmp_path / folder / "train_data.rejected.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"id": "a", "reason": "bad_audio", "detail": "x"}) + "\n")
    named = {"trained": ["retriever", "qwen2_audio"], "answering": ["qwen2_audio"]}
    own = "models/qwen2_audio/train_data.rejected.jsonl"
    assert [row["file"] for row in _rejected_rows(tmp_path, [], [], **named, folds=0)] == [own]
    folded = "folds/0/index/train_data.rejected.jsonl"
    assert [row["file"] for row in _rejected_rows(tmp_path, [], [], **named, folds=1)] == [folded, own]


def test_answers_about_seen_speakers_are_shown_beside_those_about_unseen_ones_where_there_are_some(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rome = frozenset({"rome"})
    right, wrong = SaidTerms(rome), SaidTerms(frozenset())
    found = {
        name: answer_figures([Outcome("rome", rome, True, said, found=said == right) for said in answers], rome)
        for name, answers in {"unseen": [wrong], "seen": [right, right, right, wrong], "retriever": [right]}.items()
    }
    test = {**found["unseen"], "retriever": found["retriever"]}
    seen = {**found["seen"], "retriever": None}  # it has no threshold
    assert [who for who, _ in _answering_parts("llm", {**test, "seen_speakers": NO_SEEN_SPEAKER})] == [
        "llm",
        "retriever",
    ]
    assert _answering_parts("llm", {**test, "seen_speakers": seen})[2:] == [("llm, seen speakers", seen)]
    for part, line in (
        (NO_SEEN_SPEAKER, ""),
        (seen, "speakers heard in training, 4 term chunks: recall of seen terms 0.750"),
    ):
        _print_answers("llm", {"task": "spot_terms", "test": {**test, "seen_speakers": part}})
        printed = capsys.readouterr().out
        assert line in printed and ("heard in training" in printed) == bool(line)


def test_a_run_of_chunks_from_a_file_says_nothing_of_an_alignment_that_it_did_not_make() -> None:
    funnel = {"steps": [{"step": "manifest", "input": 1200}], "chunks": {"term": 1000, "no_term": 200}}
    assert _funnel_sentence(funnel) == "1,200 manifest lines, 1,000 term chunks and 200 no-term chunks"
    funnel["steps"].append({"step": "align", "kept": 40})
    assert _funnel_sentence(funnel).startswith("1,200 manifest lines, 40 segments aligned, 1,000 term")
