"""Finding a glossary's terms in a recording of any length: what is said, where, and how surely.

The recording is read block by block and cut into sliding windows, each heard as a chunk of training was. What scores
over the run's threshold in some window is a hit; hits of the same speech are merged.

>>> for hit in search(Path("talk.flac"), Path("data/demo")):
...     print(hit.start_s, hit.end_s, hit.term, hit.probability)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from earmark.audio import SAMPLE_RATE, Recording
from earmark.errors import AudioError, InputError
from earmark.files import read_json
from earmark.logs import progress
from earmark.retrieval.alignment_index import AlignmentIndex
from earmark.retrieval.index import load_index
from earmark.retrieval.model import hear, load_retriever
from earmark.retrieval.whisper import STATES_PER_FRAME
from earmark.whisper import STATE_SAMPLES

# A term and its second of context on each side are 2 to 4 s in training. Of one window a term gives one hit: the
# shorter windows find what is said twice within 4 s.
WINDOWS_S = (2.0, 4.0)
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 0.5, 30.0  # the encoder's own limit
CANDIDATES = 1000  # surfaces that are aligned with a window
FRAME_S = STATES_PER_FRAME * STATE_SAMPLES / SAMPLE_RATE
_BATCH = 32  # windows heard at once

# A unit is most certain about its middle, so a path enters a term late and leaves it early. Medians over the mentions
# (111) of the demo's dev voices: the path's first and last frame against the word times that the synthesisers gave.
STARTS_LATE_S = 0.045
ENDS_EARLY_S = 0.025


@dataclass(frozen=True)
class Hit:
    """A main term heard in a recording; times are seconds from its start."""

    term: str  # the main term, normalised
    surface: str  # the spelling that was heard: the term itself or one of its aliases
    start_s: float
    end_s: float
    score: float
    probability: (
        float | None
    )  # that a chunk of this score holds a term, were every second chunk to hold one; None: not calibrated


@dataclass(frozen=True)
class Window:
    start_s: float
    end_s: float
    length_s: float  # asked for; a clip that is shorter is a shorter window


def search(
    audio_path: Path,
    run_folder: Path,
    *,
    backend: str = "retriever",
    encoder_precision: str = "float32",
    k: int = 10,
    windows_s: Sequence[float] = WINDOWS_S,
    threshold: float | None = None,
) -> list[Hit]:
    """The terms spoken in an audio file, in their order: `TermSearch(run_folder, ...).hits(audio_path, ...)`."""
    return TermSearch(run_folder, backend, encoder_precision).hits(
        audio_path, k=k, windows_s=windows_s, threshold=threshold
    )


class TermSearch:
    """The retriever, the index and the threshold of a trained run, loaded once for any number of recordings."""

    def __init__(self, run_folder: Path, backend: str = "retriever", encoder_precision: str = "float32"):
        """`run_folder` is data/{run}. InputError where it holds no such retriever or index.

        `encoder_precision`: see `TermRetriever`. ConfigError where its encoder cannot hear so.
        """
        model = run_folder / "models" / backend
        self._retriever = load_retriever(model)
        self._retriever.encoder_precision = encoder_precision
        self._index = load_index(run_folder / "index" / backend, self._retriever)
        self._metrics_path = run_folder / "evaluation" / backend / "metrics.json"
        self._metrics: dict[str, Any] = read_json(self._metrics_path) if self._metrics_path.is_file() else {}

    def threshold(self) -> float:
        """The run's own, set by its evaluation. InputError where the evaluation left none."""
        threshold = self._metrics.get("rejection_threshold")
        if threshold is None:
            why = "holds no rejection_threshold" if self._metrics else "there is no such file"
            raise InputError(
                f"{self._metrics_path}: {why}; run the evaluate stage on a dev split with no-term chunks, or give a "
                "threshold"
            )
        return float(threshold)

    def hits(
        self, audio: Path, *, k: int = 10, windows_s: Sequence[float] = WINDOWS_S, threshold: float | None = None
    ) -> list[Hit]:
        """What is heard with a score over `threshold` (None: the run's own), merged (`merge_hits`), by start.

        At most `k` terms of a window count. A term that is no longer than half of the longest window lies whole in some
        window. Times are the term's own where the retriever aligns (to a frame of 40 ms); where it is pooled, those of
        the window, of which then only the best term is left. Empty where nothing is heard. AudioError where the file
        cannot be read; InputError for windows that no encoder hears.
        """
        return merge_hits(self._heard(audio, k, windows_s, self.threshold() if threshold is None else threshold))

    def ranking(self, audio: Path, *, k: int = 10, windows_s: Sequence[float] = WINDOWS_S) -> list[Hit]:
        """The `k` best terms of a clip, best first, each where it scores best, whatever that score is."""
        best: dict[str, Hit] = {}
        for hit in self._heard(audio, k, windows_s, -math.inf):
            if hit.term not in best or hit.score > best[hit.term].score:
                best[hit.term] = hit
        return sorted(best.values(), key=_best_first)[:k]

    def _heard(self, audio: Path, k: int, windows_s: Sequence[float], threshold: float) -> Iterator[Hit]:
        if k < 1:
            raise InputError(f"k is {k}; ask for at least one term")
        if math.isnan(threshold):
            raise InputError("the threshold is no number; leave it out for the run's own")
        for windows, clips in _batches(audio, windows_s):
            with torch.inference_mode():
                try:
                    heard = hear(self._retriever, self._retriever.preprocess(clips, modality="audio"))
                except AudioError as error:
                    place = f"between {windows[0].start_s:.1f} and {windows[-1].end_s:.1f} s"
                    raise AudioError(f"{audio}: {place}: {error}") from None
                scores = self._index.scores(heard, CANDIDATES)
                for number, window in enumerate(windows):
                    rows = _best_rows(scores[number], self._index.main_terms, k, threshold)
                    for row, (start_s, end_s) in zip(rows, self._times(heard, number, rows, window), strict=True):
                        score = float(scores[number, row])
                        yield Hit(
                            self._index.main_terms[row],
                            self._index.surfaces[row],
                            start_s,
                            end_s,
                            score,
                            self._probability(score),
                        )

    def _times(self, heard: dict[str, Any], number: int, rows: list[int], window: Window) -> list[tuple[float, float]]:
        if not rows or not isinstance(self._index.rows, AlignmentIndex):
            return [(window.start_s, window.end_s)] * len(rows)
        times = []
        for first, last in self._index.rows.locate(heard, number, rows):
            start_s = max(window.start_s, window.start_s + first * FRAME_S - STARTS_LATE_S)
            end_s = min(window.end_s, window.start_s + (last + 1) * FRAME_S + ENDS_EARLY_S)
            times.append((start_s, end_s))
        return times

    def _probability(self, score: float) -> float | None:
        calibration = self._metrics.get("calibration") or {}
        if "slope" not in calibration:
            return None
        return float(expit(calibration["slope"] * score + calibration["intercept"]))


def _best_rows(scores: np.ndarray, main_terms: Sequence[str], k: int, threshold: float) -> list[int]:
    """The rows of the `k` best main terms over `threshold`, each by its best surface, best first."""
    over = np.flatnonzero(scores > threshold)
    best: dict[str, int] = {}
    for row in over[np.argsort(-scores[over], kind="stable")].tolist():
        best.setdefault(main_terms[row], row)
        if len(best) == k:
            break
    return list(best.values())


def merge_hits(hits: Iterable[Hit]) -> list[Hit]:
    """One hit for each stretch of speech, by start.

    The best score goes first and stays. A later one falls away where it overlaps a hit that stays: of the same term, at
    all (the same speech in another window); of another term, by more than half of the shorter one (a shorter term
    inside it, a near homophone). Terms that follow one another and share a frame both stay.
    """
    kept: list[Hit] = []
    near: dict[int, list[Hit]] = defaultdict(list)  # kept hits, by each whole second that they touch
    for hit in sorted(hits, key=_best_first):
        seconds = range(math.floor(hit.start_s), math.floor(hit.end_s) + 1)
        if not any(_same_speech(hit, other) for second in seconds for other in near[second]):
            kept.append(hit)
            for second in seconds:
                near[second].append(hit)
    return sorted(kept, key=lambda hit: (hit.start_s, hit.end_s))


def _same_speech(one: Hit, other: Hit) -> bool:
    overlap_s = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    if one.term == other.term:
        return overlap_s > 0
    return overlap_s > min(one.end_s - one.start_s, other.end_s - other.start_s) / 2


def _best_first(hit: Hit) -> tuple[float, float, str]:
    return -hit.score, hit.start_s, hit.term


def _batches(audio: Path, windows_s: Sequence[float]) -> Iterator[tuple[list[Window], list[np.ndarray]]]:
    """Windows of one length and their samples, a batch at a time; a batch of each length is in memory, never all."""
    with Recording(audio) as recording:
        windows = sliding_windows(recording.info.duration_s, windows_s)
        spans = recording.spans((window.start_s, window.end_s) for window in windows)
        shown = progress(windows, total=len(windows), unit="windows") if len(windows) > _BATCH else windows
        waiting: dict[float, tuple[list[Window], list[np.ndarray]]] = {}
        empty = True
        for window, (samples, _) in zip(shown, spans, strict=True):
            if not len(samples):  # the file ends before its header says
                continue
            empty = False
            batch = waiting.setdefault(window.length_s, ([], []))
            batch[0].append(window)
            batch[1].append(samples)
            if len(batch[0]) == _BATCH:
                yield waiting.pop(window.length_s)
        if empty:
            raise AudioError(f"{audio}: holds no sample")
        yield from waiting.values()


def sliding_windows(duration_s: float, windows_s: Sequence[float]) -> list[Window]:
    """Windows of each length over a recording, by start, that together hold all of it.

    Each begins half a length after the one before; the last ends with the recording. A recording no longer than a
    length is one window, once. InputError for lengths outside SHORTEST_WINDOW_S to LONGEST_WINDOW_S, or none.
    """
    if not windows_s or not all(SHORTEST_WINDOW_S <= length_s <= LONGEST_WINDOW_S for length_s in windows_s):
        raise InputError(
            f"windows of {' and '.join(f'{length_s:g}' for length_s in windows_s) or 'no'} s: give lengths from "
            f"{SHORTEST_WINDOW_S:g} to {LONGEST_WINDOW_S:g} s, such as {WINDOWS_S[0]:g} {WINDOWS_S[1]:g}"
        )
    samples = math.ceil(duration_s * SAMPLE_RATE)
    windows: dict[tuple[int, int], Window] = {}
    for length_s in sorted(set(windows_s)):
        length = round(length_s * SAMPLE_RATE)
        last = max(0, samples - length)
        for start in (*range(0, last, length // 2), last):
            end = min(start + length, samples)
            windows.setdefault((start, end), Window(start / SAMPLE_RATE, end / SAMPLE_RATE, length_s))
    return [windows[place] for place in sorted(windows)]
