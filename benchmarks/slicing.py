"""What cutting a term chunk costs, against the script that reads the whole audio file for every spoken term.

    .venv/bin/python benchmarks/slicing.py

The script, as it is commonly written: for every spoken term it reads its segment's audio file to float32 and resamples
it to 16 kHz where needed (soundfile and soxr HQ, which is what `librosa.load(path, sr=16_000)` runs), takes the term's
slice and writes it to folder/{rec[:3]}/{rec}/{chunk}.wav. It is handed the list of slices. `cut_chunks` starts from the
tables instead: it finds the terms, plans the slices, and packs them as FLAC into one Parquet file.

The speech is the demo's with its known word times: each utterance a file of its own (16 kHz and 44.1 kHz wav), the
demo's own recordings, and utterances joined to recordings of 10 and 60 minutes. CPU seconds of one thread in a process
of its own, files in the page cache; the best of the rounds. Where the script would take longer than --script-s, it
cuts so many terms drawn at random. Every chunk that it cut is compared with that of `cut_chunks`: as many samples, each
within two steps of 16 bits (both round, and resampling whole and by blocks differs by less than a step).
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import soxr
import yaml
from corpus_scale import REPO, measured

from earmark.artifacts import ALIGNMENTS, CORPUS, iterate_rows, read_table, write_json, write_table
from earmark.audio import SAMPLE_RATE, decode_audio, read_audio
from earmark.chunks.cut import cut_chunks
from earmark.files import read_json
from earmark.text import normalise

DEMO = REPO / "data/demo"
PAUSE_S = 0.3  # between two utterances of a joined recording
TOLERANCE = 2 / 32768

Slice = tuple[str, str, str, float, float]  # chunk_id, recording_id, audio_path, start_s and end_s in that file


@dataclass(frozen=True)
class Utterance:
    segment_id: str
    speaker_id: str
    samples: np.ndarray  # int16[n] at SAMPLE_RATE
    row: dict[str, Any]  # of the demo's manifest

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def utterances() -> Iterator[Utterance]:
    recordings: dict[str, np.ndarray] = {}
    with (DEMO / "manifest.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["audio"] not in recordings:
                recordings[row["audio"]] = np.clip(read_audio(DEMO / row["audio"]) * 32767, -32767, 32767)
            start = round(float(row["offset_s"]) * SAMPLE_RATE)
            samples = recordings[row["audio"]][start : start + round(float(row["duration_s"]) * SAMPLE_RATE)]
            yield Utterance(row["segment_id"], row["speaker"], np.rint(samples).astype(np.int16), row)


def one_file_each(spoken: list[Utterance], folder: Path, rate: int) -> Iterator[dict[str, Any]]:
    """CORPUS rows of wavs at `rate`, each an utterance."""
    for utterance in spoken:
        path = folder / f"{utterance.segment_id}.wav"
        pcm = utterance.samples if rate == SAMPLE_RATE else soxr.resample(utterance.samples, SAMPLE_RATE, rate)
        soundfile.write(path, pcm, rate)
        yield corpus_row(utterance, utterance.segment_id, path, 0.0)


def joined(spoken: list[Utterance], folder: Path, minutes: float, **format: str) -> Iterator[dict[str, Any]]:
    """CORPUS rows of recordings of so many minutes; the last may be shorter."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.int16)
    parts: list[np.ndarray] = []
    length, number = 0, 0

    def close() -> None:
        with soundfile.SoundFile(folder / f"rec{number:03d}.x", "w", SAMPLE_RATE, 1, **format) as file:
            for part in parts:
                file.write(part)

    for utterance in spoken:
        if length / SAMPLE_RATE > minutes * 60:
            close()
            parts, length, number = [], 0, number + 1
        yield corpus_row(utterance, f"rec{number:03d}", folder / f"rec{number:03d}.x", length / SAMPLE_RATE)
        parts += [utterance.samples, pause]
        length += len(utterance.samples) + len(pause)
    close()


def as_recorded(spoken: list[Utterance]) -> Iterator[dict[str, Any]]:
    """CORPUS rows of the demo's own files."""
    for utterance in spoken:
        row = utterance.row
        yield corpus_row(utterance, row["recording_id"], DEMO / row["audio"], float(row["offset_s"]))


def corpus_row(utterance: Utterance, recording_id: str, path: Path, offset_s: float) -> dict[str, Any]:
    return {
        "segment_id": utterance.segment_id,
        "recording_id": recording_id,
        "speaker_id": utterance.speaker_id,
        "audio_path": str(path),
        "offset_s": offset_s,
        "duration_s": utterance.duration_s,
        "text": utterance.row["text"],
        "language": "en",
    }


def write_tables(rows: list[dict[str, Any]], folder: Path) -> None:
    rows = sorted(rows, key=lambda row: (row["recording_id"], row["offset_s"]))
    words = {row["segment_id"]: row["words"] for row in read_table(DEMO / "word_times.parquet").to_pylist()}
    aligned = [
        {
            "segment_id": row["segment_id"],
            "aligner": "known",
            "status": "aligned",
            "words": [word | {"trusted": True} for word in words[row["segment_id"]]],
        }
        for row in rows
    ]
    write_table(folder / "corpus.parquet", pa.Table.from_pylist(rows, schema=CORPUS))
    write_table(folder / "alignments.parquet", pa.Table.from_pylist(aligned, schema=ALIGNMENTS))
    glossary, aliases = read_json(DEMO / "glossary_filtered.json"), read_json(DEMO / "alt2main.json")
    write_json(folder / "glossary.json", {normalise(phrase): entry for phrase, entry in glossary.items()})
    write_json(folder / "alt2main.json", {normalise(alias): normalise(phrase) for alias, phrase in aliases.items()})
    write_json(folder / "ambiguous.json", {})
    write_json(folder / "dropped.json", {})


def cut(folder: Path, output: Path) -> dict[str, Any]:
    settings = yaml.safe_load((REPO / "config.yaml").read_text(encoding="utf-8"))["chunks"]
    names = ("context_s", "context_jitter_s", "min_term_s", "max_term_s", "max_no_term_per_recording")
    cut_chunks(
        folder / "corpus.parquet", folder / "alignments.parquet", folder / "glossary.json", folder / "alt2main.json",
        folder / "ambiguous.json", folder / "dropped.json", output, **{name: settings[name] for name in names},
        no_term_ratio=0.0, seed=1, max_rejected_fraction=1.0,
    )  # fmt: skip
    return {}


def script(slices: list[Slice], folder: Path, budget_s: float) -> dict[str, Any]:
    started = time.process_time()
    done = 0
    for chunk_id, recording_id, audio_path, start_s, end_s in slices:
        samples, rate = soundfile.read(audio_path, dtype="float32")
        if rate != SAMPLE_RATE:
            samples = soxr.resample(samples, rate, SAMPLE_RATE)
        path = folder / recording_id[:3] / recording_id / f"{chunk_id}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)], SAMPLE_RATE)
        done += 1
        if time.process_time() - started > budget_s:
            break
    return {"chunks": done}


def slices_of(corpus: Path, chunks: Path) -> list[Slice]:
    rows = {row["segment_id"]: row for row in iterate_rows(corpus)}
    planned = []
    for chunk in iterate_rows(chunks, columns=["chunk_id", "segment_id", "start_s", "end_s"]):
        row = rows[chunk["segment_id"]]
        times = row["offset_s"] + chunk["start_s"], row["offset_s"] + chunk["end_s"]
        planned.append((chunk["chunk_id"], row["recording_id"], row["audio_path"], *times))
    return random.Random(1).sample(planned, len(planned))  # noqa: S311 (no secret)


def check(chunks: Path, wavs: Path, slices: list[Slice]) -> None:
    """SystemExit unless both cut the same samples."""
    packed = {row["chunk_id"]: row["audio"]["bytes"] for row in iterate_rows(chunks, columns=["chunk_id", "audio"])}
    for chunk_id, recording_id, *_ in slices:
        theirs, _ = soundfile.read(wavs / recording_id[:3] / recording_id / f"{chunk_id}.wav", dtype="float32")
        ours = decode_audio(packed[chunk_id])
        if len(ours) != len(theirs) or np.abs(ours - theirs).max() > TOLERANCE:
            raise SystemExit(f"{chunk_id}: the script's chunk holds other samples")


def compare(name: str, rows: list[dict[str, Any]], folder: Path, script_s: float, rounds: int) -> None:
    write_tables(rows, folder)
    chunks = folder / "chunks.parquet"
    ours_s = min(measured(cut, folder, chunks)["cpu_s"] for _ in range(rounds))
    slices = slices_of(folder / "corpus.parquet", chunks)
    results = []
    for number in range(rounds):
        done = measured(script, slices, folder / f"wavs{number}", script_s)
        results.append((done["cpu_s"] / done["chunks"], done["chunks"]))
        check(chunks, folder / f"wavs{number}", slices[: done["chunks"]])
    theirs_ms, ours_ms = min(results)[0] * 1e3, ours_s / len(slices) * 1e3
    cells = len(slices), min(results)[1], f"{theirs_ms:.2f}", f"{ours_ms:.2f}", f"{theirs_ms / ours_ms:.1f}"
    print(line(name, *cells, len(slices), 2), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script-s", type=float, default=10.0, help="CPU seconds the script may take a round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    spoken = list(utterances())
    variants = {
        "utterances, wav 16 kHz": lambda folder: one_file_each(spoken, folder, SAMPLE_RATE),
        "utterances, wav 44.1 kHz": lambda folder: one_file_each(spoken, folder, 44_100),
        "the demo's recordings, Opus": lambda folder: as_recorded(spoken),
        "10 minutes, FLAC": lambda folder: joined(spoken, folder, 10, format="FLAC"),
        "10 minutes, Opus": lambda folder: joined(spoken, folder, 10, format="OGG", subtype="OPUS"),
        "60 minutes, FLAC": lambda folder: joined(spoken, folder, 60, format="FLAC"),
        "60 minutes, Opus": lambda folder: joined(spoken, folder, 60, format="OGG", subtype="OPUS"),
    }
    total_s = sum(utterance.duration_s for utterance in spoken)
    print(f"{len(spoken)} utterances, {total_s / len(spoken):.1f} s each; CPU ms a term chunk; files written")
    print(line("audio", "chunks", "by script", "script", "earmark", "ratio", "files", "files"))
    for name, rows in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            compare(name, list(rows(Path(folder))), Path(folder), options.script_s, options.rounds)


line = "{:<30}{:>8}{:>11}{:>9}{:>9}{:>9}{:>8}{:>7}".format


if __name__ == "__main__":
    main()
