"""How fast the embedded aligner is, with and without scoring, on one core and more, and how exact its times are.

    .venv/bin/python benchmarks/embedded_aligner.py [--minutes 5] [--speech FOLDER]

Whole recordings spread over the demo, about --minutes of speech; the best of --rounds counts. Start-up is the time for
a single utterance (processes, dictionary, models) and is taken off; what is left is told as seconds of speech per
second, in all and per core by CPU time, which others on the machine disturb less. Decoding the audio is included.
Word starts and ends are compared with data/demo/word_times.parquet. `--speech` names a folder whose manifest.tsv has
the columns segment_id, audio and text; it has no known times.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from earmark.alignment.accuracy import boundary_figures
from earmark.alignment.aligner import Alignment, Failure, Utterance
from earmark.alignment.embedded import EmbeddedAligner
from earmark.artifacts import read_table
from earmark.audio import AudioSource, audio_info
from earmark.corpus.readers import read_corpus
from earmark.corpus.records import Segment

SEED = 1
LEAST_QUALITY = -1000.0  # everything is scored, nothing rejected


@dataclass(frozen=True)
class Run:
    """One pass of the aligner. `cpu_s` is that of all worker processes and of reading the audio."""

    results: list[Alignment | Failure]
    wall_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=Path("data/demo/manifest.tsv"))
    parser.add_argument("--word-times", type=Path, default=Path("data/demo/word_times.parquet"))
    parser.add_argument("--lexicon", type=Path, default=Path("data/demo/lexicon.txt"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--speech", type=Path, help="a folder of real speech with a manifest.tsv")
    arguments = parser.parse_args()
    spoken = some_recordings(utterances(arguments.manifest), arguments.minutes * 60)
    speech_s = sum(utterance.duration_s for utterance in spoken)
    print(f"demo: {len(spoken)} utterances, {speech_s / 60:.1f} minutes, best of {arguments.rounds}")
    print("scoring  workers  start-up s  wall s  speech s per s  per core, by CPU time")
    for scored, workers in itertools.product((False, True), arguments.workers):
        first, whole = (
            best_run(arguments.lexicon, part, workers=workers, scored=scored, rounds=arguments.rounds)
            for part in (spoken[:1], spoken)
        )
        aligned_s = speech_s - spoken[0].duration_s
        speed, cpu_speed = aligned_s / (whole.wall_s - first.wall_s), aligned_s / (whole.cpu_s - first.cpu_s)
        kind = "yes" if scored else "no"
        print(f"{kind:7}  {workers:7}  {first.wall_s:10.2f}  {whole.wall_s:6.1f}  {speed:14.1f}  {cpu_speed:21.1f}")
    tell_quality("demo", whole.results)
    tell_errors(whole.results, arguments.word_times)
    if arguments.speech:
        real = best_run(
            arguments.lexicon, utterances(arguments.speech / "manifest.tsv"), workers=1, scored=True, rounds=1
        )
        tell_quality(arguments.speech.name, real.results)


def utterances(manifest: Path) -> list[Utterance]:
    found = []
    for entry in read_corpus("tsv", manifest, audio_root=None, columns={}, subset=None, language="en"):
        if isinstance(entry, Segment):
            duration_s = entry.duration_s or audio_info(Path(entry.audio_path)).duration_s
            found.append(
                Utterance(
                    entry.segment_id, entry.recording_id, entry.speaker_id, entry.language,
                    AudioSource(Path(entry.audio_path)), entry.offset_s, duration_s, entry.text.split(),
                )
            )  # fmt: skip
    return sorted(found, key=lambda utterance: (utterance.recording_id, utterance.offset_s))


def some_recordings(every: list[Utterance], wanted_s: float) -> list[Utterance]:
    """Every n-th recording, so that about `wanted_s` of speech come from voices of all kinds."""
    recordings = [list(group) for _, group in itertools.groupby(every, key=lambda utterance: utterance.recording_id)]
    total_s = sum(utterance.duration_s for utterance in every)
    places = np.linspace(0, len(recordings) - 1, max(1, round(len(recordings) * min(1.0, wanted_s / total_s))))
    return [utterance for place in places for utterance in recordings[round(place)]]


def best_run(lexicon: Path, spoken: list[Utterance], *, workers: int, scored: bool, rounds: int) -> Run:
    """Least wall and least CPU time of `rounds`."""
    runs = []
    for _ in range(rounds):
        wall_s, cpu_s = time.perf_counter(), cpu_time_s()
        aligner = EmbeddedAligner(
            lexicon,
            guess_pronunciations=True,
            min_quality=LEAST_QUALITY if scored else None,
            threads=workers,
            seed=SEED,
        )
        results = list(aligner.align(spoken))
        runs.append(Run(results, time.perf_counter() - wall_s, cpu_time_s() - cpu_s))
    return replace(runs[0], wall_s=min(run.wall_s for run in runs), cpu_s=min(run.cpu_s for run in runs))


def cpu_time_s() -> float:
    """CPU time of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def tell_quality(name: str, results: list[Alignment | Failure]) -> None:
    reasons = Counter(result.reason for result in results if isinstance(result, Failure))
    aligned = [result for result in results if isinstance(result, Alignment) and result.words]
    qualities = [result.quality for result in aligned if result.quality is not None]
    spread = "  ".join(f"{quality:.2f}" for quality in np.quantile(qualities, [0, 0.01, 0.5, 1])) if qualities else "-"
    print(f"\n{name}: {len(aligned)} of {len(results)} aligned {dict(reasons) or ''}")
    print(f"quality, least, 1 %, median, most: {spread}")


def tell_errors(results: list[Alignment | Failure], word_times: Path) -> None:
    known = {row["segment_id"]: row["words"] for row in read_table(word_times).to_pylist()}
    errors_s: list[float] = []
    differing = 0
    for result in results:
        if isinstance(result, Alignment):
            pairs = list(zip(result.words, known[result.segment_id], strict=False))
            if len(result.words) != len(known[result.segment_id]) or any(w.word != k["word"] for w, k in pairs):
                differing += 1
                continue
            for word, truth in pairs:
                errors_s += [word.start_s - truth["start_s"], word.end_s - truth["end_s"]]
    print(f"word starts and ends against the known ones: {boundary_figures(errors_s)}; {differing} with other words")


if __name__ == "__main__":
    main()
