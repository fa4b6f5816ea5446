"""How well a transcript fits its audio, by a second model: hama's phoneme recogniser (Apache-2.0, numpy alone).

The recogniser gives log-probabilities of phonemes every 20 ms (connectionist temporal classification, CTC). The best
path of the transcript's phonemes through all of the segment has to explain every sound in it: a wrong word and speech
that the transcript leaves out both cost, which the aligner itself does not notice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from earmark.alignment.intervals import WordInterval
from earmark.audio import SAMPLE_RATE

FRAMES_PER_S = 50
PIECE_S = 5.0  # the recogniser's time grows with the square of the length: 0.10 s per second here, 0.20 at 30 s
FLOOR = math.log(1e-6)  # of a frame: one sound that the model does not know must not sink a segment

# The CMU phonemes in the recogniser's symbols. Where it has several for one sound, their probabilities are added.
SYMBOLS = {
    "AA": "ɑ ɒ a ä", "AE": "æ a", "AH": "ʌ ə ɐ ɘ", "AO": "ɔ ɒ ɑ o", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "t͡ʃ",
    "D": "d ɾ", "DH": "ð", "EH": "ɛ e", "ER": "ɝ ɚ ɜ", "EY": "eɪ e", "F": "f", "G": "g ɡ", "HH": "h", "IH": "ɪ ɨ",
    "IY": "i", "JH": "d͡ʒ", "K": "k kʰ", "L": "l ɫ", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ o", "OY": "ɔɪ",
    "P": "p pʰ", "R": "ɹ r", "S": "s", "SH": "ʃ", "T": "t ɾ tʰ", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w",
    "Y": "j", "Z": "z", "ZH": "ʒ", "": "<blank> <wb>",
}  # fmt: skip
BLANK = len(SYMBOLS) - 1
_INDEX = {phoneme: index for index, phoneme in enumerate(SYMBOLS)}


class NoScorerError(Exception):
    """Why segments cannot be scored on this machine."""


@dataclass(frozen=True, slots=True)
class Score:
    """`quality`: log-probability of the best path, per phoneme of the segment. `words`: the same for each word."""

    quality: float
    words: list[float]


class PhonemeScorer:
    """Scores one segment at a time, on one core. NoScorerError if hama is missing or does not run here."""

    def __init__(self) -> None:
        try:
            from hama import ASRModel

            model = ASRModel()
        except ImportError:
            raise NoScorerError("the package hama is not installed") from None
        except RuntimeError as error:
            raise NoScorerError(f"the package hama does not run on this machine ({error})") from None
        self._session = model.session
        columns = [[model.decoder_tokens.index(symbol) for symbol in symbols.split()] for symbols in SYMBOLS.values()]
        self._columns = np.concatenate(columns)
        self._starts = np.cumsum([0, *map(len, columns[:-1])])

    def score(self, samples: np.ndarray, words: Sequence[WordInterval], phonemes: Sequence[Sequence[str]]) -> Score:
        """Score the words that were aligned to samples[n] (16 kHz). `phonemes[i]`: CMU phonemes of `words[i]`."""
        log_probs = np.concatenate([self._log_probs(samples[start:end]) for start, end in pieces(len(samples), words)])
        return score_words(log_probs, [[_INDEX[phoneme] for phoneme in word] for word in phonemes])

    def _log_probs(self, samples: np.ndarray) -> np.ndarray:
        """Log-probabilities [frame, SYMBOLS] of samples[n]."""
        feeds = {"waveform": np.clip(samples, -1.0, 1.0), "waveform_lengths": np.array([len(samples)])}
        (log_probs,) = self._session.run(["log_probs"], feeds)
        return np.maximum(np.logaddexp.reduceat(log_probs[0][:, self._columns], self._starts, axis=1), FLOOR)


def pieces(length: int, words: Sequence[WordInterval]) -> list[tuple[int, int]]:
    """(start, end) of the pieces of samples[length] to be recognised one by one, cut between words.

    A border is the one nearest to where equal pieces of no more than PIECE_S would be cut.
    """
    count = math.ceil(length / (PIECE_S * SAMPLE_RATE))
    between = [SAMPLE_RATE * (left.end_s + right.start_s) / 2 for left, right in itertools.pairwise(words)]
    borders = [0]
    for target in (length * number / count for number in range(1, count)):
        nearest = min(between, key=lambda place: abs(place - target), default=target)
        # Where no word ends or begins for seconds, a cut anywhere does no harm.
        border = round(nearest if abs(nearest - target) < PIECE_S * SAMPLE_RATE / 2 else target)
        if border > borders[-1]:
            borders.append(border)
    return list(zip(borders, [*borders[1:], length], strict=True))


def score_words(log_probs: np.ndarray, words: Sequence[Sequence[int]]) -> Score:
    """Score words, given as columns of log_probs[frame, SYMBOLS], on their best common path (CTC, Viterbi).

    Frames without a phoneme between two words count half for each. FLOOR where there are fewer frames than phonemes.
    """
    sequence = [phoneme for word in words for phoneme in word]
    path = best_path(log_probs, sequence)
    if path is None:
        return Score(FLOOR, [FLOOR] * len(words))
    states = np.array([BLANK, *(column for phoneme in sequence for column in (phoneme, BLANK))])
    summed = np.concatenate([[0.0], np.cumsum(log_probs[np.arange(len(path)), states[path]])])
    ends = np.cumsum([len(word) for word in words])  # in phonemes
    # The frames in which the last phoneme of a word ends, and the first of the next one begins.
    borders = [
        (np.searchsorted(path, 2 * end, side="left") + np.searchsorted(path, 2 * end + 1, side="left")) // 2
        for end in ends[:-1]
    ]
    totals = np.diff(summed[[0, *borders, len(path)]])
    scores = [float(total / len(word)) for total, word in zip(totals, words, strict=True)]
    return Score(float(summed[-1] / len(sequence)), scores)


def best_path(log_probs: np.ndarray, sequence: Sequence[int]) -> np.ndarray | None:
    """The state of each frame on the likeliest path of `sequence` through log_probs[frame, SYMBOLS].

    State 2n + 1 is phoneme n, state 2n the blank before it. None if there are too few frames. Graves et al. 2006,
    https://doi.org/10.1145/1143844.1143891, with the best path in place of the sum of all.
    """
    states = np.array([BLANK, *(column for phoneme in sequence for column in (phoneme, BLANK))])
    may_skip = np.zeros(len(states), dtype=bool)  # the blank before it: not between two equal phonemes
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]
    steps = np.zeros(emitted.shape, dtype=np.int8)  # how many states the path moved on in reaching one
    reached = np.full(len(states) + 2, -np.inf)  # two states that cannot be come first: each has two before it
    reached[2:4] = emitted[0, :2]
    for frame in range(1, len(emitted)):
        best, moved = reached[1:-1].copy(), steps[frame]
        np.maximum(best, reached[2:], out=best)
        moved[best > reached[2:]] = 1
        skipped = may_skip & (reached[:-2] > best)
        moved[skipped] = 2
        best[skipped] = reached[:-2][skipped]
        reached[2:] = best + emitted[frame]
    state = len(states) - (1 if reached[-1] > reached[-2] else 2)
    if not np.isfinite(reached[state + 2]):
        return None
    path = np.empty(len(emitted), dtype=np.int64)
    for frame in range(len(emitted) - 1, -1, -1):
        path[frame] = state
        state -= int(steps[frame, state])
    return path
