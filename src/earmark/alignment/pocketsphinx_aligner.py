"""Forced alignment with PocketSphinx and the English model in its wheel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pocketsphinx import Decoder

from earmark.alignment.intervals import WordInterval
from earmark.audio import SAMPLE_RATE
from earmark.pronunciations import read_lexicon

PAD_S = 0.25  # silence on both sides: the search needs room to enter and leave the first and last word
DITHER = 1e-3  # white noise added: digital silence gives features that no model state fits
FRAMES_PER_S = 100


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word with its time, and with that of its pronunciations (CMU phonemes) that fits the audio best."""

    interval: WordInterval
    phonemes: list[str]


class PocketSphinxAligner:
    """Aligns one segment at a time. A decoder costs about 0.3 s to make: keep one per process.

    `lexicon` adds pronunciations: lines of "word PH ON EM ES", CMU phonemes without stress.
    """

    name = f"pocketsphinx-{version('pocketsphinx')}"

    def __init__(self, lexicon: Path | None, seed: int):
        # Beams, weights and transform stay the defaults: narrower ones fail on real speech.
        self._decoder = Decoder(lm=None, loglevel="FATAL", samprate=SAMPLE_RATE)
        self._seed = seed
        if lexicon is not None:
            self._add_lexicon(lexicon)

    def _add_lexicon(self, lexicon: Path) -> None:
        for word, pronunciations in read_lexicon(lexicon).items():
            for phonemes in pronunciations:
                # Several pronunciations of a word are numbered as in the CMU dictionary: word, word(2), ...
                count, spelling = 1, word
                while self._decoder.lookup_word(spelling) is not None:
                    count += 1
                    spelling = f"{word}({count})"
                self.add_word(spelling, phonemes)

    def pronunciation(self, word: str) -> list[str] | None:
        """The phonemes of `word` in its first pronunciation, or None if it is unknown."""
        phonemes = self._decoder.lookup_word(word)
        return phonemes.split() if phonemes else None

    def add_word(self, word: str, phonemes: Sequence[str]) -> None:
        """Make an unknown word known, in PHONEMES."""
        self._decoder.add_word(word, " ".join(phonemes), False)

    def align(self, samples: np.ndarray, words: Sequence[str]) -> list[SpokenWord]:
        """The words of samples[n] (16 kHz), or an empty list where the search found no path.

        The words returned may differ from `words` (PocketSphinx gives short results without an error): compare them.
        """
        # The noise depends on the seed and the length alone, so a segment aligns alike in every shard and order.
        noise = np.random.default_rng([self._seed, len(samples)])
        padded = np.pad(samples, round(PAD_S * SAMPLE_RATE))
        padded = padded + noise.normal(0.0, DITHER, len(padded))
        pcm = (np.clip(padded, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        # The front end's noise estimate outlives an utterance: without this, what came before shifts the times.
        self._decoder.reinit_feat()
        self._decoder.set_align_text(" ".join(words))
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return []
        return [
            SpokenWord(
                WordInterval(
                    segment.word.split("(")[0],
                    segment.start_frame / FRAMES_PER_S - PAD_S,
                    (segment.end_frame + 1) / FRAMES_PER_S - PAD_S,
                ),
                self._decoder.lookup_word(segment.word).split(),
            )
            for segment in self._decoder.seg()
            if not segment.word.startswith(("<", "[", "+"))
        ]
