"""Evaluating what a speech language model answers about the dev and test chunks, with the retriever beside it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from earmark.artifacts import ANSWER_PREDICTIONS, iterate_rows, write_json, write_table
from earmark.errors import InputError
from earmark.evaluation.speakers import NO_SEEN_SPEAKER, by_speaker, heard_speakers
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
    hints: Sequence[Path] = (),
) -> None:
    """Write metrics.json and predictions.parquet (ANSWER_PREDICTIONS) of `answers` (split -> table of answers).

    By `task`, answers list terms or say `none` (spot_terms), or are transcripts in which terms are looked for
    (transcribe; with word and character error rates). `answer_figures` says what is counted. `retriever` holds the
    same figures of the retriever on the same chunks: it says the term that it ranks first where that scores above its
    rejection threshold, and finds a chunk's term where that is ranked first (other spoken terms aside) above the
    threshold; they are null where it has none. `not_answered` counts chunks of the split without an answer. Test's
    figures are those of speakers that training does not hear; its part `seen_speakers` has the same of the others, or a
    reason where there are none. `hints`: a {split}.counts.json for each split, where the model's prompts held terms
    that the retriever ranks first; the report has what they count under `hints`, by split. InputError if a split has no
    answer at all.
    """
    surfaces = read_surfaces(glossary, alt2main)
    display = {main_term: entry["term"] for main_term, entry in read_json(glossary).items()}
    spelled = spelled_terms(surfaces, display)
    read: Callable[[str], SaidTerms] = (
        TranscribedTerms(spelled) if task == "transcribe" else ListedTerms(spelled, display)
    )
    training_terms = frozenset[str]().union(*(row.spoken_terms for row in read_split(splits / "train.parquet")))
    heard = heard_speakers(splits)
    ranked = {row["chunk_id"]: row for row in iterate_rows(retriever_predictions)}
    threshold = read_json(retriever_metrics)["rejection_threshold"]
    report: dict[str, Any] = {"task": task, "main_terms": len(display), "surfaces": len(surfaces)}
    if hints:
        report["hints"] = {path.name.removesuffix(".counts.json"): read_json(path)["hints"] for path in hints}
    written: list[dict[str, Any]] = []
    for split, path in answers.items():
        given = {row["chunk_id"]: row for row in iterate_rows(path)}
        rows = read_split(splits / f"{split}.parquet")
        answered = [row for row in rows if row.chunk_id in given]
        if not answered:
            raise InputError(f"{path}: holds no answer about a chunk of {splits}/{split}.parquet; run its stage again")
        said = {row.chunk_id: read(given[row.chunk_id]["text"]) for row in answered}
        beside = partial(_retriever_figures, ranked=ranked, threshold=threshold, training_terms=training_terms)
        figures = partial(
            _figures, given=given, said=said, beside=beside, training_terms=training_terms,
            as_transcripts=task == "transcribe",
        )  # fmt: skip
        unseen, seen = by_speaker(rows, heard, lambda row: row.speaker_id)
        report[split] = figures(unseen)
        if split == "test":
            report[split]["seen_speakers"] = figures(seen) if seen else NO_SEEN_SPEAKER
        written += [_prediction(split, row, heard, given[row.chunk_id], said[row.chunk_id]) for row in answered]
    write_table(predictions, pa.Table.from_pylist(written, schema=ANSWER_PREDICTIONS))
    write_json(metrics, report)


def _figures(
    rows: Sequence[SplitRow],
    given: Mapping[str, dict[str, Any]],
    said: Mapping[str, SaidTerms],
    beside: Callable[[Sequence[SplitRow]], dict[str, Any] | None],
    training_terms: frozenset[str],
    as_transcripts: bool,
) -> dict[str, Any]:
    """The figures of rows, answered ones alone, with those of the retriever `beside`."""
    answered = [row for row in rows if row.chunk_id in given]
    figures = {
        "not_answered": len(rows) - len(answered),
        "unfinished": sum(not given[row.chunk_id]["finished"] for row in answered),
        **answer_figures([_answered(row, said[row.chunk_id]) for row in answered], training_terms),
        "retriever": beside(answered),
    }
    if as_transcripts:
        texts = [given[row.chunk_id]["text"] for row in answered]
        figures["transcript"] = transcript_figures([row.text for row in answered], texts)
    return figures


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


def _prediction(
    split: str, row: SplitRow, heard: Container[str], answer: dict[str, Any], said: SaidTerms
) -> dict[str, Any]:
    return {
        "chunk_id": row.chunk_id,
        "split": split,
        "speaker_id": row.speaker_id,
        "seen_speaker": row.speaker_id in heard,
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
