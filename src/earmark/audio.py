"""Reading, resampling and packing audio. Samples are float32, mono, in [-1, 1]."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from earmark.errors import AudioError

SAMPLE_RATE = 16_000  # Hz; what every model of the chain hears

# soundfile's own errors; TypeError for headerless audio (.raw); MemoryError for a header that claims hours too many.
_UNREADABLE = (soundfile.LibsndfileError, OSError, TypeError, MemoryError)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, before any sample is decoded."""

    sample_rate: int  # Hz
    channels: int
    duration_s: float


def audio_info(path: Path) -> AudioInfo:
    """Read a file's header. AudioError if it is missing or no audio that libsndfile knows."""
    try:
        info = soundfile.info(str(path))
    except _UNREADABLE as error:
        raise AudioError(_why(path, error)) from None
    return AudioInfo(info.samplerate, info.channels, info.frames / info.samplerate)


def read_audio(path: Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a whole file to samples[n] at `sample_rate`: channels averaged, resampled with soxr (HQ).

    AudioError if it is missing, no audio that libsndfile knows, or holds no sample.
    """
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except _UNREADABLE as error:
        raise AudioError(_why(path, error)) from None
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate).astype(np.float32)
    if not len(mono):
        raise AudioError(f"{path}: holds no sample")
    return mono


def slice_samples(samples: np.ndarray, start_s: float, end_s: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The samples of [start_s, end_s), rounded to the nearest sample and kept inside the array."""
    start = max(0, round(start_s * sample_rate))
    return samples[start : max(start, round(end_s * sample_rate))]


def encode_flac(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Pack samples[n] as 16-bit FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_audio(data: bytes) -> np.ndarray:
    """Unpack what `encode_flac` (or any other packer libsndfile knows) made: samples[n] at SAMPLE_RATE."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise AudioError(f"packed audio is {rate} Hz with shape {samples.shape}; expected mono at {SAMPLE_RATE} Hz")
    return samples


def is_missing(path: Path) -> bool:
    """Whether no such file can be: also where the name is longer than the file system allows."""
    try:
        return not path.exists()
    except OSError:
        return True


def _why(path: Path, error: Exception) -> str:
    if is_missing(path):
        return f"{path}: there is no such file"
    return f"{path}: cannot be read as audio ({error})"
