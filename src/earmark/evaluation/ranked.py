"""What a way of finding terms makes of the dev and test chunks, in figures: the same for every way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from earmark.artifacts import PREDICTIONS, RANKINGS, read_table, write_json, write_table
from earmark.evaluation.distractors import distractor_words
from earmark.evaluation.measures import (
    LETTER_BINS,
    TRAINING_CHUNK_BINS,
    auroc,
    calibration,
    letter_count,
    recall_and_mrr,
    recall_by_bin,
    recall_of_every_term,
    rejection,
    rejection_threshold,
)
from earmark.evaluation.speakers import NO_SEEN_SPEAKER, by_speaker, heard_speakers
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores
from earmark.retrieval.split_rows import SplitRow

_BATCH = 64
_GROUPS: dict[str, frozenset[bool | None]] = {
    "all": frozenset({True, False}),
    "seen": frozenset({True}),
    "unseen": frozenset({False}),
}


@dataclass(frozen=True)
class Scorer:
    """A glossary that is ready to be searched: `scores(rows)` -> scores[B, columns]; a column spells a main term."""

    main_terms: Sequence[str]
    scores: Callable[[Sequence[SplitRow]], np.ndarray]


# A way of finding terms: what it makes of surfaces (surface -> main term).
Way = Callable[[Mapping[str, str]], Scorer]


@dataclass(frozen=True)
class Settings:
    """The section `evaluate` of the configuration, and the seed."""

    false_acceptance: float  # share of no-term chunks that the threshold lets through where it is set, below 1
    bootstrap_resamples: int
    top_k: int  # terms kept per chunk in the predictions
    distractors: Sequence[int]  # how many words nobody says join the glossary, in turn
    word_list: Path | None  # where they are taken from; None: the English dictionary
    seed: int

    @classmethod
    def of(cls, section: Mapping[str, Any], seed: int) -> Settings:
        """The settings as the configuration writes them."""
        word_list = section["word_list"]
        return cls(**{**section, "word_list": Path(word_list) if word_list else None}, seed=seed)


@dataclass(frozen=True)
class HeldOut:
    """Training chunks, and a way that differs from the one measured in not having heard their speakers."""

    way: Way
    rows: Sequence[SplitRow]


@dataclass(frozen=True)
class Heard:
    """What was made of one chunk."""

    row: SplitRow
    rank: int | None  # of the spoken main term, from 1; None for a no-term chunk
    every_rank: tuple[int, ...]  # of it and the chunk's further terms, none taken out of the ranking
    top_terms: tuple[str, ...]
    top_scores: tuple[float, ...]


def write_figures(
    way: Way,
    rows: Mapping[str, Sequence[SplitRow]],
    surfaces: Mapping[str, str],
    splits: Path,
    metrics: Path,
    predictions: Path,
    settings: Settings,
    left_out: Mapping[str, Sequence[SplitRow]],
    held_out: Sequence[HeldOut] = (),
) -> None:
    """Rank `surfaces` for the rows of dev and test; write metrics.json and predictions.parquet (PREDICTIONS).

    A main term scores as its best surface. Further terms spoken in a chunk (`other_terms`) are taken out of its ranking
    before the rank of its own term is read: they are neither right nor wrong. (`top_terms` hold them.) `every_term`
    asks for them too.

    All figures of test are those of speakers that training does not hear, but for its part `seen_speakers`, which has
    the same of the others', or a reason where there are none.

    Groups: `all`, `seen` (the main term is heard in a kept training chunk) and `unseen` terms; test also by the number
    of a term's training chunks and by its letters. The rejection threshold and the map from score to probability
    (`calibration`) are set on dev and `held_out` together (`set_on` counts them), and applied to test as they are.
    `duration_auroc` is a control: how well a chunk's length alone tells term chunks from no-term chunks, 0.5 being not
    at all. `left_out` are the chunks that could not be used (`without_features`). `distractors`: the same with so many
    words in the glossary that nobody says; there a chunk counts as accepted whatever is heard in it, and the threshold
    is set anew. A figure whose chunks are missing is null, or its group has a `reason`.
    """
    training = Counter(read_table(splits / "train.parquet", ["main_term"])["main_term"].to_pylist())
    speakers = heard_speakers(splits)
    terms = len(set(surfaces.values()))
    heard = _hear(way(surfaces), rows, settings.top_k)
    set_on = [*heard["dev"], *_hear_held_out(held_out, surfaces)]
    threshold = _threshold(set_on, settings.false_acceptance)
    report: dict[str, Any] = {
        "main_terms": terms,
        "surfaces": len(surfaces),
        "rejection_threshold": threshold,
        "set_on": _counts(set_on),
        "calibration": _calibration(set_on, heard["dev"]),
    }
    unseen, seen = _of_speakers(heard["test"], speakers)
    missing, missing_seen = by_speaker(left_out["test"], speakers, lambda row: row.speaker_id)
    report["dev"] = {
        "without_features": len(left_out["dev"]),
        **_figures(heard["dev"], terms, threshold, settings),
    }
    report["test"] = {
        "without_features": len(missing),
        **_figures(unseen, terms, threshold, settings),
        "calibration": _calibration(set_on, unseen),
        **_by_bins(unseen, training, terms, settings),
        "seen_speakers": NO_SEEN_SPEAKER,
    }
    has_seen = bool(seen or missing_seen)
    if has_seen:
        figures = _figures(seen, terms, threshold, settings)
        report["test"]["seen_speakers"] = {"without_features": len(missing_seen), **figures}
    report["distractors"] = _with_distractors(way, rows, surfaces, splits, speakers, has_seen, settings, held_out)
    write_table(predictions, _predictions(heard, speakers))
    write_json(metrics, report)


def write_rankings(scorer: Scorer, rows: Sequence[SplitRow], top_k: int, rankings: Path) -> None:
    """Rank the scorer's main terms for the rows; write the best `top_k` of each (RANKINGS) and no figures."""
    heard = _hear(scorer, {"": rows}, top_k)[""]
    columns = [
        [item.row.chunk_id for item in heard],
        [item.row.speaker_id for item in heard],
        [list(item.top_terms) for item in heard],
        [list(item.top_scores) for item in heard],
    ]
    write_table(rankings, pa.table(columns, schema=RANKINGS))


def _with_distractors(
    way: Way,
    rows: Mapping[str, Sequence[SplitRow]],
    surfaces: Mapping[str, str],
    splits: Path,
    speakers: Container[str],
    has_seen: bool,
    settings: Settings,
    held_out: Sequence[HeldOut],
) -> dict[str, Any]:
    """{how many: {searched, rejection_threshold, test}}; `searched` leaves out words that the way cannot spell."""
    if not settings.distractors:
        return {}
    without_term = [HeldOut(item.way, [row for row in item.rows if not row.has_term]) for item in held_out]
    words = distractor_words(
        max(settings.distractors), _spoken_words(splits), surfaces, settings.seed, settings.word_list
    )
    report = {}
    for count in dict.fromkeys(min(count, len(words)) for count in settings.distractors):
        larger = {**surfaces, **{word: word for word in words[:count]}}
        scorer = way(larger)
        heard = _hear(scorer, rows, top_k=1)
        threshold = _threshold([*heard["dev"], *_hear_held_out(without_term, larger)], settings.false_acceptance)
        terms = len(set(larger.values()))
        unseen, seen = _of_speakers(heard["test"], speakers)
        report[str(count)] = {
            "searched": len(set(words[:count]).intersection(scorer.main_terms)),
            "rejection_threshold": threshold,
            "test": {
                **_figures(unseen, terms, threshold, settings),
                "seen_speakers": _figures(seen, terms, threshold, settings) if has_seen else NO_SEEN_SPEAKER,
            },
        }
    return report


def _spoken_words(splits: Path) -> set[str]:
    """The words of all chunks, whatever was kept of them: so every way is given the same distractors."""
    texts = (read_table(splits / f"{split}.parquet", ["text"])["text"] for split in ("train", "dev", "test"))
    return {word for column in texts for text in column.to_pylist() for word in (text or "").split()}


def _of_speakers(heard: Sequence[Heard], speakers: Container[str]) -> tuple[list[Heard], list[Heard]]:
    """Chunks of unseen speakers, and of seen ones."""
    return by_speaker(heard, speakers, lambda item: item.row.speaker_id)


def _hear(scorer: Scorer, rows: Mapping[str, Sequence[SplitRow]], top_k: int) -> dict[str, list[Heard]]:
    columns = TermColumns.of(scorer.main_terms)
    return {
        split: [
            _read(row, row_scores, columns, top_k)
            for start in range(0, len(group), _BATCH)
            for row, row_scores in zip(
                group[start : start + _BATCH],
                term_scores(scorer.scores(group[start : start + _BATCH]), columns),
                strict=True,
            )
        ]
        for split, group in rows.items()
    }


def _hear_held_out(held_out: Sequence[HeldOut], surfaces: Mapping[str, str]) -> list[Heard]:
    return [one for item in held_out if item.rows for one in _hear(item.way(surfaces), {"": item.rows}, 1)[""]]


def _read(row: SplitRow, scores: np.ndarray, columns: TermColumns, top_k: int) -> Heard:
    best = np.argsort(-scores, kind="stable")[:top_k]
    rank: int | None = None
    every_rank: tuple[int, ...] = ()
    if row.main_term is not None:
        rank = rank_of(scores, columns, row.main_term, row.other_terms)
        every_rank = (rank,)
        if row.other_terms:
            every_rank = tuple(rank_of(scores, columns, term, ()) for term in sorted(row.spoken_terms))
    return Heard(row, rank, every_rank, tuple(columns.terms[i] for i in best), tuple(float(scores[i]) for i in best))


def _figures(heard: Sequence[Heard], terms: int, threshold: float | None, settings: Settings) -> dict[str, Any]:
    groups = {name: [item for item in heard if item.row.has_term and item.row.seen_term in seen]
              for name, seen in _GROUPS.items()}  # fmt: skip
    retrieval = {name: _recall(group, terms, settings) for name, group in groups.items()}
    ranks, main_terms = [item.every_rank for item in groups["all"]], _ranks(groups["all"])[1]
    every_term = recall_of_every_term(ranks, main_terms, settings.bootstrap_resamples, settings.seed)
    return {
        "retrieval": retrieval,
        "every_term": every_term,
        "rejection": _rejection(heard, groups, threshold, settings.false_acceptance),
    }


def _recall(heard: Sequence[Heard], terms: int, settings: Settings) -> dict[str, Any]:
    ranks, spoken = _ranks(heard)
    return recall_and_mrr(ranks, spoken, terms, settings.bootstrap_resamples, settings.seed)


def _ranks(heard: Sequence[Heard]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([item.rank for item in heard]), np.array([item.row.main_term for item in heard])


def _by_bins(heard: Sequence[Heard], training: Counter, terms: int, settings: Settings) -> dict[str, Any]:
    spoken = [item for item in heard if item.row.main_term is not None]
    ranks, main_terms = _ranks(spoken)
    values = {
        "by_training_chunks": (TRAINING_CHUNK_BINS, [training[term] for term in main_terms]),
        "by_letters": (LETTER_BINS, [letter_count(term) for term in main_terms]),
    }
    return {
        name: recall_by_bin(
            ranks, main_terms, np.array(counts, int), bins, terms, settings.bootstrap_resamples, settings.seed
        )
        for name, (bins, counts) in values.items()
    }


def _counts(heard: Sequence[Heard]) -> dict[str, int]:
    return {
        "term_chunks": sum(item.row.has_term for item in heard),
        "no_term_chunks": sum(not item.row.has_term for item in heard),
        "no_term_speakers": len({item.row.speaker_id for item in heard if not item.row.has_term}),
    }


def _threshold(set_on: Sequence[Heard], false_acceptance: float) -> float | None:
    scores = np.array([item.top_scores[0] for item in set_on if not item.row.has_term])
    return rejection_threshold(scores, false_acceptance) if len(scores) else None


def _rejection(
    heard: Sequence[Heard], groups: Mapping[str, Sequence[Heard]], threshold: float | None, asked: float
) -> dict[str, Any]:
    durations = {
        has_term: np.array([item.row.duration_s for item in heard if item.row.has_term == has_term])
        for has_term in (True, False)
    }
    control = {"duration_auroc": auroc(durations[True], durations[False])}
    if threshold is None:
        return {"reason": "there is no no-term chunk of dev to set a threshold on", **control}
    no_term = np.array([item.top_scores[0] for item in heard if not item.row.has_term])
    scores = {name: np.array([item.top_scores[0] for item in group]) for name, group in groups.items()}
    return {**rejection(threshold, no_term, scores, asked), **control}


def _calibration(set_on: Sequence[Heard], heard: Sequence[Heard]) -> dict[str, Any]:
    return calibration(*_accepted(set_on), *_accepted(heard))


def _accepted(heard: Sequence[Heard]) -> tuple[np.ndarray, np.ndarray]:
    """The best scores of chunks, and whether each holds a term."""
    return np.array([item.top_scores[0] for item in heard]), np.array([item.row.has_term for item in heard], bool)


def _predictions(heard: Mapping[str, Sequence[Heard]], speakers: Container[str]) -> pa.Table:
    rows = [
        {
            "chunk_id": item.row.chunk_id,
            "split": split,
            "speaker_id": item.row.speaker_id,
            "seen_speaker": item.row.speaker_id in speakers,
            "has_term": item.row.has_term,
            "main_term": item.row.main_term,
            "seen_term": item.row.seen_term,
            "rank": item.rank,
            "top_terms": list(item.top_terms),
            "top_scores": list(item.top_scores),
        }
        for split, results in heard.items()
        for item in results
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)
