"""Reading, resampling and packing audio. Samples are float32, mono, in [-1, 1]."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from earmark.errors import AudioError
from earmark.packed_audio import packed_audio

SAMPLE_RATE = 16_000  # Hz; what every model of the chain hears

# soundfile's own errors; TypeError for headerless audio (.raw); MemoryError for a header that claims hours too many.
_UNREADABLE = (soundfile.LibsndfileError, OSError, TypeError, MemoryError)


BLOCK_S = 10.0  # decoded at a time


@dataclass(frozen=True)
class AudioSource:
    """Where the samples of a recording lie: a file of its own, or a row of a Parquet or Arrow file that packs many."""

    path: Path
    row: int | None = None  # of a packed file
    channel: int | None = None  # from 0; None: all, averaged

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> AudioSource:
        """The recording of a CORPUS row."""
        return cls(Path(row["audio_path"]), row["audio_row"], row["channel"])

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}, row {self.row}"


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, before any sample is decoded."""

    sample_rate: int  # Hz
    channels: int
    duration_s: float


def audio_info(source: Path | AudioSource) -> AudioInfo:
    """Read a recording's header. AudioError if it is missing or no audio that libsndfile knows."""
    with _opened(_as_source(source)) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames / file.samplerate)


def read_audio(source: Path | AudioSource) -> np.ndarray:
    """Decode a whole recording to samples[n] at SAMPLE_RATE: channels averaged, resampled with soxr (HQ).

    AudioError if it is missing, no audio that libsndfile knows, has no such channel, or holds no sample.
    """
    blocks = list(_blocks(_as_source(source)))
    samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if not len(samples):
        raise AudioError(f"{source}: holds no sample")
    return samples


def read_spans(source: AudioSource, spans: Iterable[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Yield samples[n] at SAMPLE_RATE of each (start_s, end_s), in their order, which must be that of start_s.

    The recording is decoded once, front to back; a span and a block of it are in memory, never the whole. A span
    comes out shorter where the recording ends early. Errors are those of `read_audio`, when its bad part is reached.
    """
    blocks = _blocks(source)
    held, held_from = np.empty(0, np.float32), 0  # samples decoded and still wanted, and the place of the first
    for start_s, end_s in spans:
        start = max(0, round(start_s * SAMPLE_RATE))
        end = max(start, round(end_s * SAMPLE_RATE))
        if start < held_from:
            raise ValueError(f"{source}: span at {start_s} s comes after one that starts later")
        pieces, place = [held[start - held_from :]], held_from + len(held)
        while place < end and (block := next(blocks, None)) is not None:
            if place + len(block) > start:
                pieces.append(block[max(0, start - place) :])
            place += len(block)
        held, held_from = np.concatenate(pieces), start
        yield held[: end - start]


def _as_source(source: Path | AudioSource) -> AudioSource:
    return source if isinstance(source, AudioSource) else AudioSource(source)


@contextmanager
def _opened(source: AudioSource) -> Iterator[soundfile.SoundFile]:
    """The recording, open; whatever goes wrong with it meanwhile is an AudioError."""
    try:
        file = str(source.path) if source.row is None else io.BytesIO(packed_audio(source.path, source.row))
        with soundfile.SoundFile(file) as opened:
            yield opened
    except _UNREADABLE as error:
        raise AudioError(_why(source, error)) from None


def _blocks(source: AudioSource) -> Iterator[np.ndarray]:
    """samples[n] of the recording at SAMPLE_RATE, one channel, block by block."""
    with _opened(source) as file:
        if source.channel is not None and source.channel >= file.channels:
            raise AudioError(f"{source}: has {file.channels} channels, numbered from 0; there is no {source.channel}")
        resampler = None
        if file.samplerate != SAMPLE_RATE:
            resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
        wanted = round(BLOCK_S * file.samplerate)
        while True:
            frames = file.read(wanted, dtype="float32", always_2d=True)
            last = len(frames) < wanted
            channel = 0 if file.channels == 1 else source.channel
            mono = frames.mean(axis=1) if channel is None else np.ascontiguousarray(frames[:, channel])
            block = mono if resampler is None else resampler.resample_chunk(mono, last=last)
            if len(block):
                yield block
            if last:
                return


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


def _why(source: AudioSource, error: Exception) -> str:
    if is_missing(source.path):
        return f"{source}: there is no such file"
    return f"{source}: cannot be read as audio ({error})"
