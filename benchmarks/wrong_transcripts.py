"""How many wrong transcripts the embedded aligner lets through, and how many right ones it rejects.

    .venv/bin/python benchmarks/wrong_transcripts.py [--speech FOLDER]

The demo's utterances with their own texts; 50 of them (--changed) with texts swapped among themselves, with half
the words deleted at random, and with three neighbouring words deleted; their texts with silence and with white noise
of the utterance's level in place of the audio; and their own texts with white noise 10 dB below the speech, which a
good score forgives. The real stage runs on each, with a threshold that rejects nothing, and the thresholds are compared
afterwards on the qualities it kept. `--speech` names a folder whose manifest.tsv has the columns segment_id, audio and
text: all of it is changed likewise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from earmark.alignment.embedded import EmbeddedAligner
from earmark.alignment.shard import align_shard
from earmark.artifacts import CORPUS, StageTable, iterate_rows, rejected_path
from earmark.audio import SAMPLE_RATE, AudioSource, audio_info, read_spans
from earmark.corpus.readers import read_corpus
from earmark.corpus.records import Segment

THRESHOLDS = (-1.5, -2.0, -2.5, -3.0, -3.5, -4.0, -5.0, -6.0)
SEED = 1
MEASURED_ONLY = -1000.0  # a quality that nothing is below
QUIET = 10 ** (-10 / 20)  # noise 10 dB below the speech


@dataclass(frozen=True)
class Outcome:
    """What became of the segments of one condition: their qualities, or the reasons they were rejected for."""

    qualities: list[float]
    reasons: Counter[str]

    @property
    def total(self) -> int:
        return len(self.qualities) + self.reasons.total()

    def rejected(self, min_quality: float) -> int:
        return self.reasons.total() + sum(quality < min_quality for quality in self.qualities)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=Path("data/demo/manifest.tsv"))
    parser.add_argument("--lexicon", type=Path, default=Path("data/demo/lexicon.txt"))
    parser.add_argument("--unchanged", type=int, default=0, help="how many unchanged utterances; 0: all")
    parser.add_argument("--changed", type=int, default=50, help="how many utterances are changed")
    parser.add_argument("--speech", type=Path, help="a folder of real speech with a manifest.tsv")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    aligner = EmbeddedAligner(
        arguments.lexicon, guess_pronunciations=True, min_quality=MEASURED_ONLY, threads=arguments.threads, seed=SEED
    )
    demo = segments(arguments.manifest)
    report("demo", aligner, sample(demo, arguments.unchanged or len(demo)), sample(demo, arguments.changed))
    if arguments.speech:
        speech = segments(arguments.speech / "manifest.tsv")
        report(arguments.speech.name, aligner, speech, speech)


def segments(manifest: Path) -> list[Segment]:
    found = read_corpus("tsv", manifest, audio_root=None, columns={}, subset=None, language="en")
    rows = [entry for entry in found if isinstance(entry, Segment)]
    return [
        row if row.duration_s else replace(row, duration_s=audio_info(Path(row.audio_path)).duration_s) for row in rows
    ]


def sample(rows: Sequence[Segment], count: int) -> list[Segment]:
    chosen = np.random.default_rng(SEED).choice(len(rows), count, replace=False)
    return [rows[index] for index in sorted(chosen)]


def report(name: str, aligner: EmbeddedAligner, unchanged: list[Segment], changed: list[Segment]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        conditions = {
            "unchanged": unchanged,
            "texts swapped": swapped(changed),
            "half the words deleted": [delete_half(row, number) for number, row in enumerate(changed)],
            "3 words deleted": [delete_three(row, number) for number, row in enumerate(changed)],
            "silence": with_audio(changed, Path(folder, "silence"), lambda samples, _: np.zeros_like(samples)),
            "noise alone": with_audio(changed, Path(folder, "noise"), lambda _, noise: noise),
            "right, noise at -10 dB": with_audio(changed, Path(folder, "noisy"), lambda s, noise: s + QUIET * noise),
        }
        outcomes = {title: run(aligner, rows, Path(folder)) for title, rows in conditions.items()}
    print(f"\n{name}: rejected by the aligner itself, and qualities of the rest (least, 1 %, median, 99 %, most)")
    for title, outcome in outcomes.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(outcome.reasons.items())) or "none"
        figures = np.quantile(outcome.qualities, [0, 0.01, 0.5, 0.99, 1]).tolist() if outcome.qualities else []
        print(f"  {title:24} {outcome.total:5}  {reasons:40} {'  '.join(f'{figure:.2f}' for figure in figures)}")
    print(f"\n{name}: rejected in all, by min_quality")
    print(f"  {'':24} {'of':>5}  {'null':>5}" + "".join(f"{threshold:7}" for threshold in THRESHOLDS))
    for title, outcome in outcomes.items():
        counts = "".join(f"{outcome.rejected(threshold):7}" for threshold in THRESHOLDS)
        print(f"  {title:24} {outcome.total:5}  {outcome.reasons.total():5}{counts}")


def run(aligner: EmbeddedAligner, rows: list[Segment], folder: Path) -> Outcome:
    """Align the segments as the stage does."""
    corpus, alignments = folder / "corpus.parquet", folder / "alignments.parquet"
    with StageTable(corpus, CORPUS, unit="segments", max_rejected_fraction=0.0) as table:
        for row in rows:
            table.rejected.input += 1
            table.keep({column: getattr(row, column) for column in CORPUS.names})
    align_shard(corpus, alignments, aligner, max_differing_words=0.0, max_rejected_fraction=1.0)
    rejected = [json.loads(line) for line in rejected_path(alignments).read_text(encoding="utf-8").splitlines()]
    return Outcome([row["quality"] for row in iterate_rows(alignments)], Counter(row["reason"] for row in rejected))


def swapped(rows: list[Segment]) -> list[Segment]:
    """Each segment with the text of the next in a random circle."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    text_of = dict(zip(order, [rows[number].text for number in np.roll(order, 1)], strict=True))
    return [replace(row, text=text_of[number]) for number, row in enumerate(rows)]


def delete_half(row: Segment, seed: int) -> Segment:
    words = row.text.split()
    kept = sorted(np.random.default_rng(seed).choice(len(words), len(words) - len(words) // 2, replace=False))
    return replace(row, text=" ".join(words[number] for number in kept))


def delete_three(row: Segment, seed: int) -> Segment:
    """Without three words that follow each other; of shorter texts, one stays."""
    words = row.text.split()
    count = min(3, len(words) - 1)
    start = int(np.random.default_rng(seed).integers(len(words) - count + 1))
    return replace(row, text=" ".join(words[:start] + words[start + count :]))


def with_audio(
    rows: list[Segment], folder: Path, make: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[Segment]:
    """The segments with audio that `make` gives for samples[n] and white noise of the same level."""
    folder.mkdir()
    changed = []
    for number, row in enumerate(rows):
        source = AudioSource(Path(row.audio_path), row.audio_row, row.channel)
        [samples] = read_spans(source, [(row.offset_s, row.offset_s + (row.duration_s or 0.0))])
        noise = np.random.default_rng(number).normal(0.0, samples.std(), len(samples))
        path = folder / f"{number}.wav"
        soundfile.write(path, np.clip(make(samples, noise), -1.0, 1.0), SAMPLE_RATE)
        changed.append(replace(row, audio_path=str(path), audio_row=None, channel=None, offset_s=0.0))
    return changed


if __name__ == "__main__":
    main()
