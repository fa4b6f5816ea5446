"""Evaluating what a speech language model answers about the dev and test chunks, with the retriever beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from earmark.artifacts import ANSWER_PREDICTIONS, iterate_rows, write_json, write_table
from earmark.errors import InputError
from earmark.evaluation.term_answers import (
    ListedTerms,
    Outcome,
    SaidTerms,
    TranscribedTerms,
    answer_figures,
    spelled_terms,
    transcript_figures,
)
from earmark.files import read_json
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces


def evaluate_answers(
    answers: Mapping[str, Path],
    splits: Path,
    glossary: Path,
    alt2main: Path,
    retriever_metrics: Path,
    retriever_predictions: Path,
    metrics: Path,
    predictions: Path,
    *,
    task: str,
) -> None:
    """Write metrics.json and predictions.parquet (ANSWER_PREDICTIONS) of `answers` (split -> table of answers).

    By `task`, answers list terms or say `none` (spot_terms), or are transcripts in which terms are looked for
    (transcribe; with word and character error rates). `answer_figures` says what is counted. `retriever` holds the
    same figures of the retriever on the same chunks: it says the term that it ranks first where that scores above its
    rejection threshold, and finds a chunk's term where that is ranked first (other spoken terms aside) above the
    threshold; they are null where it has none. `not_answered` counts chunks of the split without an answer. InputError
    if a split has none at all.
    """
    surfaces = read_surfaces(glossary, alt2main)
    display = {main_term: entry["term"] for main_term, entry in read_json(glossary).items()}
    spelled = spelled_terms(surfaces, display)
    read: Callable[[str], SaidTerms] = (
        TranscribedTerms(spelled) if task == "transcribe" else ListedTerms(spelled, display)
    )
    training_terms = frozenset[str]().union(*(row.spoken_terms for row in read_split(splits / "train.parquet")))
    ranked = {row["chunk_id"]: row for row in iterate_rows(retriever_predictions)}
    threshold = read_json(retriever_metrics)["rejection_threshold"]
    report: dict[str, Any] = {"task": task, "main_terms": len(display), "surfaces": len(surfaces)}
    written: list[dict[str, Any]] = []
    for split, path in answers.items():
        given = {row["chunk_id"]: row for row in iterate_rows(path)}
        rows = read_split(splits / f"{split}.parquet")
        answered = [row for row in rows if row.chunk_id in given]
        if not answered:
            raise InputError(f"{path}: holds no answer about a chunk of {splits}/{split}.parquet; run its stage again")
        said = {row.chunk_id: read(given[row.chunk_id]["text"]) for row in answered}
        report[split] = {
            "not_answered": len(rows) - len(answered),
            "unfinished": sum(not given[row.chunk_id]["finished"] for row in answered),
            **answer_figures([_answered(row, said[row.chunk_id]) for row in answered], training_terms),
            "retriever": _retriever_figures(answered, ranked, threshold, training_terms),
        }
        if task == "transcribe":
            report[split]["transcript"] = transcript_figures(
                [row.text for row in answered], [given[row.chunk_id]["text"] for row in answered]
            )
        written += [_prediction(split, row, given[row.chunk_id], said[row.chunk_id]) for row in answered]
    write_table(predictions, pa.Table.from_pylist(written, schema=ANSWER_PREDICTIONS))
    write_json(metrics, report)


def _answered(row: SplitRow, said: SaidTerms) -> Outcome:
    return Outcome(row.main_term, row.spoken_terms, row.seen_term, said, found=row.main_term in said.terms)


def _retriever_figures(
    rows: Sequence[SplitRow], ranked: Mapping[str, dict[str, Any]], threshold: float | None, training_terms: frozenset
) -> dict[str, Any] | None:
    if threshold is None:
        return None
    return answer_figures(
        [_ranked(row, ranked[row.chunk_id], threshold) for row in rows if row.chunk_id in ranked], training_terms
    )


def _ranked(row: SplitRow, prediction: dict[str, Any], threshold: float) -> Outcome:
    scores = dict(zip(prediction["top_terms"], prediction["top_scores"], strict=True))
    first, score = next(iter(scores.items()))
    accepted = score > threshold
    said = SaidTerms(frozenset({first}) if accepted else frozenset(), rejected=not accepted)
    found = row.main_term is not None and prediction["rank"] == 1 and scores.get(row.main_term, threshold) > threshold
    return Outcome(row.main_term, row.spoken_terms, row.seen_term, said, found)


def _prediction(split: str, row: SplitRow, answer: dict[str, Any], said: SaidTerms) -> dict[str, Any]:
    return {
        "chunk_id": row.chunk_id,
        "split": split,
        "speaker_id": row.speaker_id,
        "has_term": row.has_term,
        "main_term": row.main_term,
        "seen_term": row.seen_term,
        "text": row.text,
        "answer": answer["text"],
        "finished": answer["finished"],
        "said_terms": sorted(said.terms),
        "no_terms": sorted(said.no_terms),
        "rejected": said.rejected,
    }
