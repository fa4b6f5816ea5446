"""Telling speech from noise by how loudness changes.

In each of 16 bands over 300 Hz, the level of 25 ms frames is followed in dB. In steady noise it wavers by 1.65 to 1.81
dB (standard deviation) whatever the noise's colour and loudness, as frames are short samples of the same thing; hum and
silence waver less. Speech, syllable by syllable, wavers by 8 to 14 dB, under white noise 5 dB below it by 1.9 to 3.2 (1
% to 99 % of clips of 0.5 to 2.5 s of the demo). Spectral flatness, the usual measure, is 0.56 for white noise, but 0.12
for brown noise, as for some speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from earmark.audio import SAMPLE_RATE, read_audio
from earmark.errors import InputError

STEADY_DB = 1.85  # a clip that wavers less is no speech that could be heard
EXAMINED = 200  # clips
MOST_NOISE = 0.5  # share of them
_FRAME, _HOP, _BANDS = SAMPLE_RATE * 25 // 1000, SAMPLE_RATE // 100, 16
_LOWEST_BIN = 8  # of 40 Hz each
_FLOOR = 1e-12  # power; under the rounding of 16 bit


def waver_db(clip: np.ndarray) -> float:
    """Standard deviation over time of a clip's level, the mean over bands; 0 for one shorter than two frames.

    `clip` is float32 mono at 16 kHz.
    """
    if clip.size < _FRAME + _HOP:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(clip, _FRAME)[::_HOP] * np.hanning(_FRAME)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, _LOWEST_BIN:] ** 2
    bands = np.stack([band.mean(axis=1) for band in np.array_split(power, _BANDS, axis=1)])
    return float((10 * np.log10(bands + _FLOOR)).std(axis=1).mean())


def check_speech(paths: Sequence[Path], source: Path) -> None:
    """InputError if most of the clips sound like noise, hum or silence. EXAMINED of them, evenly spread, are heard."""
    examined = [paths[at] for at in np.linspace(0, len(paths) - 1, min(EXAMINED, len(paths))).astype(int)]
    steady = [path for path in examined if waver_db(read_audio(path)) < STEADY_DB]
    if len(steady) > MOST_NOISE * len(examined):
        raise InputError(
            f"{source}: {len(steady)} of {len(examined)} clips sound like noise, hum or silence, such as {steady[0]}; "
            "the projector would learn to answer without listening. Give it speech, or take method lora"
        )
