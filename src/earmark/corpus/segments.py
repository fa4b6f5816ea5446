"""Looking at the audio of one shard's segments: what is readable speech stays, the rest is rejected with a reason."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np

from earmark.artifacts import CORPUS, StageTable, iterate_rows
from earmark.audio import SAMPLE_RATE, is_missing, read_audio, slice_samples
from earmark.errors import AudioError
from earmark.logs import progress

END_TOLERANCE_S = 0.05  # a segment may end this much after its recording: manifests round


def check_segments(
    manifest_shard: Path,
    output: Path,
    *,
    min_duration_s: float,
    max_duration_s: float,
    min_peak: float,
    max_rejected_fraction: float,
) -> None:
    """Write the CORPUS table of one shard, each recording decoded once.

    Every segment gets its true `duration_s`. Rejected: missing_audio, unreadable_audio, outside_recording, too_short,
    too_long, not_finite (NaN or Inf samples), silence.
    """
    with StageTable(output, CORPUS, unit="segments", max_rejected_fraction=max_rejected_fraction) as table:
        rows = progress(sorted(iterate_rows(manifest_shard), key=lambda row: row["audio_path"]), unit="segments")
        for audio_path, group in itertools.groupby(rows, key=lambda row: row["audio_path"]):
            segments = list(group)
            table.rejected.input += len(segments)
            path = Path(audio_path)
            try:
                samples = read_audio(path)
            except AudioError as error:
                reason = "missing_audio" if is_missing(path) else "unreadable_audio"
                for row in segments:
                    table.reject(row["segment_id"], reason, f"{row['source']}: {error}")
                continue
            recording_s = len(samples) / SAMPLE_RATE
            for row in segments:
                source = row.pop("source")
                if row["duration_s"] is None:
                    row["duration_s"] = recording_s - row["offset_s"]
                end_s = row["offset_s"] + row["duration_s"]
                if end_s > recording_s + END_TOLERANCE_S or row["offset_s"] >= recording_s:
                    detail = f"ends at {end_s:.3f} s of a recording of {recording_s:.3f} s ({audio_path})"
                    table.reject(row["segment_id"], "outside_recording", f"{source}: {detail}")
                    continue
                row["duration_s"] = min(end_s, recording_s) - row["offset_s"]
                problem = _problem(
                    slice_samples(samples, row["offset_s"], end_s), row["duration_s"], min_duration_s, max_duration_s,
                    min_peak,
                )  # fmt: skip
                if problem:
                    table.reject(row["segment_id"], problem[0], f"{source}: {problem[1]} ({audio_path})")
                else:
                    table.keep(row)
        logging.info("%d of %d segments kept", table.rejected.kept, table.rejected.input)


def _problem(
    samples: np.ndarray, duration_s: float, min_duration_s: float, max_duration_s: float, min_peak: float
) -> tuple[str, str] | None:
    if len(samples) == 0 or duration_s < min_duration_s:
        return "too_short", f"{duration_s:.3f} s is under corpus.checks.min_duration_s {min_duration_s}"
    if duration_s > max_duration_s:
        return "too_long", f"{duration_s:.3f} s is over corpus.checks.max_duration_s {max_duration_s}"
    if not np.isfinite(samples).all():
        return "not_finite", f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite"
    peak = float(np.abs(samples).max())
    if peak < min_peak:
        return "silence", f"largest sample {peak:.2g} is under corpus.checks.min_peak {min_peak}"
    return None
