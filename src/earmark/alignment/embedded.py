"""The embedded aligner, for English: PocketSphinx, guessed pronunciations and a quality score, over processes."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from earmark.alignment.aligner import Alignment, Failure, Utterance
from earmark.alignment.intervals import clip_intervals
from earmark.alignment.pocketsphinx_aligner import PocketSphinxAligner
from earmark.alignment.quality import NoScorerError, PhonemeScorer
from earmark.audio import read_spans
from earmark.errors import EarmarkError
from earmark.pronunciations import NoGuesserError, Phonemes, PronunciationGuesser

TASKS_AHEAD = 8  # per worker; their audio is in memory
GUESSES_TOLD = 10


@dataclass(frozen=True, slots=True)
class Task:
    """One utterance for a worker: samples[n] at 16 kHz, and the pronunciations of words that its dictionary lacks."""

    segment_id: str
    samples: np.ndarray
    duration_s: float
    words: list[str]
    guessed: Mapping[str, Phonemes]


@dataclass(frozen=True, slots=True)
class Worker:
    """What one process aligns and scores with."""

    aligner: PocketSphinxAligner
    scorer: PhonemeScorer | None
    min_quality: float | None

    def align(self, task: Task) -> Alignment | Failure:
        for word, phonemes in task.guessed.items():
            if self.aligner.pronunciation(word) is None:
                self.aligner.add_word(word, phonemes)
        spoken = self.aligner.align(task.samples, task.words)
        words = clip_intervals([word.interval for word in spoken], task.duration_s)
        if not words or self.scorer is None or self.min_quality is None:
            return Alignment(task.segment_id, words)
        score = self.scorer.score(task.samples, words, [word.phonemes for word in spoken])
        if score.quality < self.min_quality:
            detail = (
                f"the words fit the audio with quality {score.quality:.2f}, below min_quality ({self.min_quality:g}): "
                "words are wrong, or speech is missing from the transcript"
            )
            return Failure(task.segment_id, "low_quality", detail)
        scored = [replace(word, score=value) for word, value in zip(words, score.words, strict=True)]
        return Alignment(task.segment_id, scored, score.quality)


_worker: Worker | None = None  # one per worker process


class EmbeddedAligner:
    """PocketSphinx with the English model in its wheel; the transcript's fit is scored by a second model.

    `lexicon` adds pronunciations; with `guess_pronunciations`, words still unknown get one from their spelling.
    `min_quality` None: nothing is scored. Failures: wrong_language, unknown_word, low_quality. What this machine lacks
    for guessing or scoring is told once, as a warning, and left out.
    """

    name = PocketSphinxAligner.name

    def __init__(
        self, lexicon: Path | None, *, guess_pronunciations: bool, min_quality: float | None, threads: int, seed: int
    ):
        self._dictionary = PocketSphinxAligner(lexicon, seed)  # a broken lexicon is reported here, not by every worker
        self._guesser = _guesser(self._dictionary) if guess_pronunciations else None
        self._worker_settings = (lexicon, min_quality if min_quality is not None and _can_score() else None, seed)
        self._threads = threads

    def align(self, utterances: Iterable[Utterance]) -> Iterator[Alignment | Failure]:
        guessed: Counter[str] = Counter()
        # Forked workers would inherit the parent's open writer and locks; spawned ones start clean.
        with ProcessPoolExecutor(
            self._threads,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=self._worker_settings,
        ) as pool:
            yield from _in_order(pool, self._tasks(utterances, guessed), self._threads * TASKS_AHEAD)
        if self._guesser and guessed:
            examples = [
                f"{word} {' '.join(self._guesser.guess(word) or [])}" for word, _ in guessed.most_common(GUESSES_TOLD)
            ]
            logging.info(
                "%d words, spoken %d times, got a guessed pronunciation; correct them in align.embedded.lexicon. "
                "Most often: %s",
                len(guessed), guessed.total(), "; ".join(examples),
            )  # fmt: skip

    def _tasks(self, utterances: Iterable[Utterance], guessed: Counter[str]) -> Iterator[Task | Failure]:
        """Each recording is decoded once, front to back, for the utterances that can be aligned."""
        for source, group in itertools.groupby(utterances, key=lambda utterance: utterance.audio):
            prepared = [(utterance, self._pronounced(utterance)) for utterance in group]
            wanted = [utterance for utterance, outcome in prepared if not isinstance(outcome, Failure)]
            audio = read_spans(source, [(u.offset_s, u.offset_s + u.duration_s) for u in wanted])
            for utterance, outcome in prepared:
                if isinstance(outcome, Failure):
                    yield outcome
                    continue
                guessed.update(word for word in utterance.words if word in outcome)
                yield Task(utterance.segment_id, next(audio), utterance.duration_s, utterance.words, outcome)

    def _pronounced(self, utterance: Utterance) -> dict[str, Phonemes] | Failure:
        """The guessed pronunciations that the utterance needs, or why it cannot be aligned."""
        if utterance.language.casefold().replace("_", "-").partition("-")[0] != "en":
            detail = (
                f"the language is {utterance.language!r}, this aligner knows English; use align.backend mfa or textgrid"
            )
            return Failure(utterance.segment_id, "wrong_language", detail)
        guessed, unknown = {}, []
        for word in dict.fromkeys(utterance.words):
            if self._dictionary.pronunciation(word) is not None:
                continue
            if self._guesser and (phonemes := self._guesser.guess(word)):
                guessed[word] = phonemes
            else:
                unknown.append(word)
        if unknown:
            detail = f"no pronunciation for {', '.join(unknown[:10])}; add it to align.embedded.lexicon"
            if any(character.isdigit() for word in unknown for character in word):
                detail += " (numbers: write them as words in the transcript)"
            return Failure(utterance.segment_id, "unknown_word", detail)
        return guessed


def _guesser(dictionary: PocketSphinxAligner) -> PronunciationGuesser | None:
    try:
        return PronunciationGuesser(dictionary.pronunciation)
    except NoGuesserError as error:
        logging.warning("%s: segments with words that the dictionary lacks will be rejected (unknown_word)", error)
        return None


def _can_score() -> bool:
    try:
        PhonemeScorer()
    except NoScorerError as error:
        logging.warning("%s: quality is not scored, and wrong transcripts go through", error)
        return False
    return True


def _in_order(pool: ProcessPoolExecutor, tasks: Iterator[Task | Failure], ahead: int) -> Iterator[Alignment | Failure]:
    """Results in the order of `tasks`, of which no more than `ahead` are under way. EarmarkError if a worker dies."""
    pending: deque[Future[Alignment | Failure] | Failure] = deque()
    try:
        for task in tasks:
            pending.append(task if isinstance(task, Failure) else pool.submit(_align, task))
            if len(pending) >= ahead:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    except BrokenProcessPool:
        raise EarmarkError(
            "an aligner process was killed, most likely for memory; give the job more memory, or lower align.threads"
        ) from None


def _result(pending: Future[Alignment | Failure] | Failure) -> Alignment | Failure:
    return pending if isinstance(pending, Failure) else pending.result()


def _start_worker(lexicon: Path | None, min_quality: float | None, seed: int) -> None:
    global _worker
    scorer = None if min_quality is None else PhonemeScorer()
    _worker = Worker(PocketSphinxAligner(lexicon, seed), scorer, min_quality)


def _align(task: Task) -> Alignment | Failure:
    assert _worker is not None
    return _worker.align(task)
