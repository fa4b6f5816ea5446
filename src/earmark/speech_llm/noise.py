"""Telling speech from noise by how the shape of its spectrum changes.

In each of 16 bands over 300 Hz, the level of 25 ms frames is followed in dB, less the mean over the bands of that
frame. In steady noise it wavers by 1.6 to 1.8 dB (standard deviation) whatever the noise's colour and loudness, as
frames are short samples of the same thing; hum and silence waver less. What one gain over time does to all bands alike
(a fade, digital silence before the noise, tremolo) changes nothing. Speech, sound by sound, wavers by 3.5 to 10 dB,
under white noise 10 dB below it by 2.0 to 3.9, 5 dB below it by 1.85 to 3.1 (1 % to 99 % of clips of 0.5 to 2.5 s of
the demo). Noise at 8 kHz, resampled to 16 kHz and rounded to 16 bit, wavers by 1.6 to 2.0 dB, half of the clips by less
than 1.8; by up to 2.6 where a poor filter leaves an image of it over 4 kHz.

Noise whose colour changes cannot be told: music, traffic, a crowd, a filter that sweeps. A voice under noise as loud as
itself (1.7 to 2.4 dB) is told from noise in most clips, not in all. Spectral flatness, the usual measure, is 0.56 for
white noise, but 0.12 for brown noise, as for some speech.
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
_WINDOW = np.hanning(_FRAME)
# What rounding to 16 bit puts into a bin, four times over: a band that holds no more holds nothing.
_ROUNDING = 4 * float((_WINDOW**2).sum()) * 2.0**-30 / 12
_HEARD_DB = 30.0  # frames so far below the loudest are pauses
_FILLED_DB = 40.0  # bands so far below the loudest are what a filter left


def waver_db(clip: np.ndarray) -> float:
    """Standard deviation over time of the levels of a clip's bands beside each other, the mean over bands.

    0 where fewer than two frames or bands hold anything. `clip` is float32 mono at 16 kHz.
    """
    if clip.size < _FRAME + _HOP:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(clip, _FRAME)[::_HOP] * _WINDOW
    power = np.abs(np.fft.rfft(frames, axis=1))[:, _LOWEST_BIN:] ** 2
    bands = np.stack([band.mean(axis=1) for band in np.array_split(power, _BANDS, axis=1)])  # [bands, frames]
    loudness = bands.mean(axis=0)
    bands = bands[:, loudness > loudness.max() * 10 ** (-_HEARD_DB / 10)]
    if bands.shape[1] < 2:
        return 0.0
    filled = bands.mean(axis=1)
    bands = bands[(filled > _ROUNDING) & (filled > filled.max() * 10 ** (-_FILLED_DB / 10))]
    if len(bands) < 2:
        return 0.0
    levels = 10 * np.log10(np.maximum(bands, _ROUNDING / 100))
    return float((levels - levels.mean(axis=0)).std(axis=1).mean())


def check_speech(paths: Sequence[Path], source: Path) -> None:
    """InputError if most of the clips sound like noise, hum or silence. EXAMINED of them, evenly spread, are heard."""
    examined = [paths[at] for at in np.linspace(0, len(paths) - 1, min(EXAMINED, len(paths))).astype(int)]
    steady = [path for path in examined if waver_db(read_audio(path)) < STEADY_DB]
    if len(steady) > MOST_NOISE * len(examined):
        raise InputError(
            f"{source}: {len(steady)} of {len(examined)} clips sound like noise, hum or silence, such as {steady[0]}; "
            "the projector would learn to answer without listening. Give it speech, or take method lora"
        )
