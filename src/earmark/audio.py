"""Reading, resampling and packing audio. Samples are float32, mono, in [-1, 1]."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile
import soxr

from earmark.errors import AudioError
from earmark.packed_audio import packed_audio

SAMPLE_RATE = 16_000  # Hz; what every model of the chain hears
BLOCK_S = 1.0  # decoded at a time; where a file is damaged, what its block held before the damage is lost with it
FLAC_LEVEL = 0.0  # the fastest: a quarter less time than libsndfile's own choice for 2 % more bytes of speech
HEADER_RATES = range(1_000, 1_000_001)  # Hz; a header that states another one is damaged

# A frame counts as clipped from here on. Clipped speech stands at 1.0 in 16-bit PCM, at 0.992 in 8-bit PCM, 0.984 in
# A-law and 0.980 in mu-law, and ripples around full scale after Vorbis, Opus or MP3.
CLIPPED_FROM = 0.98

# soundfile's own errors; TypeError for headerless audio (.raw); MemoryError for a header that claims too many channels.
_UNREADABLE = (soundfile.LibsndfileError, OSError, TypeError, MemoryError)
# libsndfile says 2^63 - 1 where a FLAC header states no length, and cannot read such a file to its end.
_UNKNOWN_FRAMES = 2**62


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


class _Stream(soundfile.SoundFile):
    """A sound file that is read from front to back only.

    soundfile seeks to where it stands after every read of a seekable file. FLAC decodes its frame once more for that,
    which doubles the time, and one without a stated length fails at its end.
    """

    def seekable(self) -> bool:
        return False


class Recording:
    """An open recording, decoded once, front to back.

    Samples come out at SAMPLE_RATE, channels averaged where the source names none, resampled with soxr (HQ). AudioError
    if it is missing or no audio that libsndfile knows, has no such channel, or where its bad part is reached.
    """

    def __init__(self, source: Path | AudioSource):
        self.source = source if isinstance(source, AudioSource) else AudioSource(source)
        self._file = self._opened()
        frames = self._file.frames
        if frames >= _UNKNOWN_FRAMES:
            frames = sum(map(len, self._frames()))
            self._file.close()
            self._file = self._opened()
        self.info = AudioInfo(self._file.samplerate, self._file.channels, frames / self._file.samplerate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def spans(self, spans: Iterable[tuple[float, float]]) -> Iterator[tuple[np.ndarray, float]]:
        """Yield (samples[n], clipped) of each (start_s, end_s), in their order, which must be that of start_s.

        `clipped` is the share of the file's own frames, before mixing and resampling, in which a channel that is used
        reaches CLIPPED_FROM. A span comes out shorter where the recording ends early. A span and a block are in memory,
        never the whole; spans that overlap share their samples, so do not write into them.
        """
        blocks = self._blocks()
        frames_per_sample = self.info.sample_rate / SAMPLE_RATE
        held, held_from = np.empty(0, np.float32), 0  # samples decoded and still wanted, and the place of the first
        clipped = np.empty(0, np.int64)  # places of the clipped frames from there on
        for start_s, end_s in spans:
            start = max(0, round(start_s * SAMPLE_RATE))
            end = max(start, round(end_s * SAMPLE_RATE))
            if start < held_from:
                raise ValueError(f"{self.source}: span at {start_s} s comes after one that starts later")
            place = held_from + len(held)
            pieces, held_from = [held[start - held_from :]], start
            while place < end and (block := next(blocks, None)) is not None:
                samples, newly_clipped = block
                if place + len(samples) > start:
                    pieces.append(samples[max(0, start - place) :])
                if len(newly_clipped):
                    clipped = np.concatenate([clipped, newly_clipped])
                place += len(samples)
            held = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            if len(clipped):
                clipped = clipped[np.searchsorted(clipped, start * frames_per_sample) :]
            span = held[: end - start]
            inside = np.searchsorted(clipped, (start + len(span)) * frames_per_sample) if len(clipped) else 0
            yield span, min(1.0, float(inside) / max(1.0, len(span) * frames_per_sample))

    def _opened(self) -> _Stream:
        path, row = self.source.path, self.source.row
        if row is None and not is_missing(path) and not path.is_file():
            raise self._unreadable("it is no regular file")  # a pipe would be waited for
        try:
            file = _Stream(str(path) if row is None else io.BytesIO(packed_audio(path, row)))
        except _UNREADABLE as error:
            if is_missing(path):
                raise AudioError(f"{self.source}: there is no such file") from None
            raise self._unreadable(str(error)) from None
        if file.samplerate not in HEADER_RATES:
            raise self._unreadable(f"its header states a sample rate of {file.samplerate} Hz")
        return file

    def _frames(self) -> Iterator[np.ndarray]:
        """frames[n, channels] as the file has them, block by block; the last is shorter than the others, or empty."""
        wanted = round(BLOCK_S * self._file.samplerate)
        while True:
            try:
                frames = self._file.read(wanted, dtype="float32", always_2d=True)
            except _UNREADABLE as error:
                raise self._unreadable(str(error)) from None
            yield frames
            if len(frames) < wanted:
                return

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """samples[n] at SAMPLE_RATE block by block, and which frames of the file were clipped on the way."""
        rate, channels, channel = self.info.sample_rate, self.info.channels, self.source.channel
        if channel is not None and channel >= channels:
            raise AudioError(f"{self.source}: has {channels} channels, numbered from 0; there is no {channel}")
        resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        place = 0
        for frames in self._frames():
            used = frames if channel is None else frames[:, channel : channel + 1]
            loud = np.abs(used) >= CLIPPED_FROM
            clipped = place + np.flatnonzero(loud.any(axis=1)) if loud.any() else np.empty(0, np.int64)
            mono = np.ascontiguousarray(used[:, 0]) if used.shape[1] == 1 else used.mean(axis=1)
            place += len(frames)
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=len(frames) < round(BLOCK_S * rate))
            yield mono, clipped

    def _unreadable(self, why: str) -> AudioError:
        return AudioError(f"{self.source}: cannot be read as audio ({why})")


def audio_info(source: Path | AudioSource) -> AudioInfo:
    """Read a recording's header. AudioError if it is missing or no audio that libsndfile knows."""
    with Recording(source) as recording:
        return recording.info


def read_audio(source: Path | AudioSource) -> np.ndarray:
    """Decode a whole recording to samples[n]. AudioError as of Recording, and if it holds no sample."""
    with Recording(source) as recording:
        samples = np.concatenate([block for block, _ in recording._blocks()])
    if not len(samples):
        raise AudioError(f"{source}: holds no sample")
    return samples


def read_spans(source: Path | AudioSource, spans: Iterable[tuple[float, float]]) -> Iterator[np.ndarray]:
    """The samples of `Recording.spans` of one recording."""
    with Recording(source) as recording:
        for samples, _ in recording.spans(spans):
            yield samples


def encode_flac(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Pack samples[n] as 16-bit FLAC."""
    buffer = io.BytesIO()
    # Rounded and clipped as libsndfile would, which is slower at it.
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(buffer, pcm, sample_rate, format="FLAC", subtype="PCM_16", compression_level=FLAC_LEVEL)
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
