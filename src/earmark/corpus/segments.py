"""Looking at the audio of one shard's segments: what is readable speech stays, the rest is rejected with a reason."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earmark.artifacts import CORPUS, StageTable, iterate_rows
from earmark.audio import SAMPLE_RATE, AudioInfo, AudioSource, Recording, is_missing
from earmark.errors import AudioError
from earmark.logs import progress

END_TOLERANCE_S = 0.05  # a segment may end this much after its recording: manifests and headers round

# Dynamic range is taken over the levels of 25 ms frames: long enough to hold a pitch period, short enough for a pause.
FRAME_S = 0.025
LOUD_PERCENTILE, QUIET_PERCENTILE = 95, 10  # so that neither one click nor one gap makes a range
FLOOR_DB = -80.0  # quieter frames count as this: digital silence between words is no infinite range

Problem = tuple[str, str]  # (reason, detail) why a segment is rejected


@dataclass(frozen=True)
class Checks:
    """What is accepted as the audio of a segment: `corpus.checks` of the configuration, which explains each."""

    min_duration_s: float
    max_duration_s: float
    min_peak: float
    min_dynamic_range_db: float
    max_clipped: float
    min_sample_rate: int
    max_channels: int


def check_segments(manifest_shard: Path, output: Path, checks: Checks, *, max_rejected_fraction: float) -> None:
    """Write the CORPUS table of one shard, in the order of its manifest; each recording is decoded once, as a stream.

    Every segment gets its true `duration_s`. Rejected, by what the header says: missing_audio, unreadable_audio,
    low_sample_rate, too_many_channels, bad_channel, outside_recording, too_short, too_long. By the samples:
    unreadable_audio (damaged, or it breaks off), not_finite (NaN or Inf), silence, clipped, low_dynamic_range.
    """
    with StageTable(output, CORPUS, unit="segments", max_rejected_fraction=max_rejected_fraction) as table:
        rows = progress(iterate_rows(manifest_shard), unit="segments")
        for _, recording in itertools.groupby(
            rows, key=lambda row: (row["audio_path"], row["audio_row"], row["channel"])
        ):
            for row, problem in _checked(recording, checks):
                table.rejected.input += 1
                source = row.pop("source")
                if problem:
                    table.reject(row["segment_id"], problem[0], f"{source}: {problem[1]}")
                else:
                    table.keep(row)
        logging.info("%d of %d segments kept", table.rejected.kept, table.rejected.input)


def _checked(rows: Iterator[dict[str, Any]], checks: Checks) -> Iterator[tuple[dict[str, Any], Problem | None]]:
    """Each segment of one recording, with what is wrong with it; those that are right in their order."""
    first = next(rows)
    rows = itertools.chain([first], rows)
    source = AudioSource.of(first)
    waiting: deque[dict[str, Any]] = deque()  # asked for, not yet decoded
    misplaced: deque[tuple[dict[str, Any], Problem]] = deque()

    def spans(info: AudioInfo) -> Iterator[tuple[float, float]]:
        for row in rows:
            if row["duration_s"] is None:
                row["duration_s"] = info.duration_s - row["offset_s"]
            if problem := _place_problem(row, source, info, checks):
                misplaced.append((row, problem))
                continue
            row["duration_s"] = min(row["duration_s"], info.duration_s - row["offset_s"])
            waiting.append(row)
            yield row["offset_s"], row["offset_s"] + row["duration_s"]

    try:
        with Recording(source) as recording:
            problem = _header_problem(source, recording.info, checks)
            if problem is None:
                for samples, clipped in recording.spans(spans(recording.info)):
                    row = waiting.popleft()
                    yield row, _samples_problem(row, source, samples, clipped, checks)
                    while misplaced:
                        yield misplaced.popleft()
    except AudioError as error:
        problem = ("missing_audio" if is_missing(source.path) else "unreadable_audio", str(error))
    yield from misplaced
    if problem:
        yield from ((row, problem) for row in itertools.chain(waiting, rows))


def _header_problem(source: AudioSource, info: AudioInfo, checks: Checks) -> Problem | None:
    """What is wrong with the recording as a whole."""
    if info.sample_rate < checks.min_sample_rate:
        detail = f"{info.sample_rate} Hz is under corpus.checks.min_sample_rate {checks.min_sample_rate}"
        return "low_sample_rate", f"{detail} ({source})"
    if info.channels > checks.max_channels:
        detail = f"{info.channels} channels are over corpus.checks.max_channels {checks.max_channels}"
        return "too_many_channels", f"{detail} ({source})"
    if source.channel is not None and source.channel >= info.channels:
        detail = f"there is no channel {source.channel} among {info.channels}, numbered from 0"
        return "bad_channel", f"{detail} ({source})"
    if not info.duration_s:
        return "unreadable_audio", f"holds no sample ({source})"
    return None


def _place_problem(row: dict[str, Any], source: AudioSource, info: AudioInfo, checks: Checks) -> Problem | None:
    """What is wrong with where the segment lies, before anything is decoded."""
    duration_s, end_s = row["duration_s"], row["offset_s"] + row["duration_s"]
    if end_s > info.duration_s + END_TOLERANCE_S or row["offset_s"] >= info.duration_s:
        detail = f"{row['offset_s']:.3f} to {end_s:.3f} s of a recording of {info.duration_s:.3f} s"
        return "outside_recording", f"{detail} ({source})"
    if duration_s < checks.min_duration_s:
        detail = f"{duration_s:.3f} s is under corpus.checks.min_duration_s {checks.min_duration_s}"
        return "too_short", f"{detail} ({source})"
    if duration_s > checks.max_duration_s:
        detail = f"{duration_s:.3f} s is over corpus.checks.max_duration_s {checks.max_duration_s}"
        return "too_long", f"{detail} ({source})"
    return None


def _samples_problem(
    row: dict[str, Any], source: AudioSource, samples: np.ndarray, clipped: float, checks: Checks
) -> Problem | None:
    """What is wrong with the sound itself."""
    decoded_s = len(samples) / SAMPLE_RATE
    if decoded_s < row["duration_s"] - END_TOLERANCE_S or not len(samples):
        detail = f"its samples end by {row['offset_s'] + decoded_s:.3f} s, earlier than its header says"
        return "unreadable_audio", f"{detail} ({source})"
    if decoded_s < row["duration_s"] - 2 / SAMPLE_RATE:  # further than both ends of a span are rounded
        row["duration_s"] = decoded_s
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        return "not_finite", f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite ({source})"
    if peak < checks.min_peak:
        return "silence", f"largest sample {peak:.2g} is under corpus.checks.min_peak {checks.min_peak} ({source})"
    if clipped > checks.max_clipped:
        detail = f"{clipped:.1%} of the samples are at full scale, over corpus.checks.max_clipped {checks.max_clipped}"
        return "clipped", f"{detail} ({source})"
    if (range_db := dynamic_range_db(samples)) < checks.min_dynamic_range_db:
        detail = f"{range_db:.1f} dB is under corpus.checks.min_dynamic_range_db {checks.min_dynamic_range_db}"
        return "low_dynamic_range", f"{detail} ({source})"
    return None


def dynamic_range_db(samples: np.ndarray) -> float:
    """Level of the loud frames of samples[n] over that of the quiet ones, in dB.

    The level of a frame is its standard deviation, so that neither an offset nor rumble below the frame rate counts.
    White and pink noise, hum, tones and held chords stay under 4 dB; read speech has 20 to 45.
    """
    length = min(len(samples), round(FRAME_S * SAMPLE_RATE))
    frames = (samples - samples.mean())[: len(samples) // length * length].reshape(-1, length)
    means = frames @ np.full(length, 1 / length, np.float32)
    powers = np.sort(np.einsum("ij,ij->i", frames, frames) / length - means**2).tolist()
    return _percentile_db(powers, LOUD_PERCENTILE) - _percentile_db(powers, QUIET_PERCENTILE)


def _percentile_db(powers: list[float], percentile: int) -> float:
    """A percentile of rising powers, interpolated in dB; numpy's own takes ten times as long for so few."""
    whole, part = divmod(percentile * (len(powers) - 1), 100)
    below, above = (max(FLOOR_DB, 10 * math.log10(max(power, 1e-20))) for power in (powers[whole : whole + 2] * 2)[:2])
    return below + (above - below) * part / 100
