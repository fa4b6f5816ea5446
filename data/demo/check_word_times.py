"""Compare the corpus's word times with a forced alignment by PocketSphinx (pip install pocketsphinx==5.0.4).

    python data/demo/check_word_times.py [UTTERANCES_PER_VOICE]

Prints a line a voice: mean and median boundary error, the share within 50 ms, and the mean signed
difference of starts and ends (alignment minus synthesiser): a constant one would tell of wrong times.
"""

from __future__ import annotations

import csv
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf
from pocketsphinx import Decoder, get_model_path

HERE = Path(__file__).resolve().parent
PAD_S = 0.25
FRAME_S = 0.01
Found = tuple[str, float, float]


def open_decoder() -> Decoder:
    """PocketSphinx with its own English model, and the corpus's lexicon added to its dictionary."""
    dictionary = Path(get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".dict", encoding="utf-8") as merged:
        merged.write(dictionary.rstrip("\n") + "\n" + (HERE / "lexicon.txt").read_text(encoding="utf-8"))
        merged.flush()
        return Decoder(lm=None, dict=merged.name, loglevel="FATAL")


def align(decoder: Decoder, samples: np.ndarray, text: str, noise: np.random.Generator) -> list[Found]:
    """Words with start and end in seconds from the first sample."""
    pad = np.zeros(int(PAD_S * 16_000))
    padded = np.concatenate([pad, samples, pad])
    padded = padded + noise.normal(0, 1e-3, len(padded))
    decoder.set_align_text(text)
    decoder.start_utt()
    decoder.process_raw((np.clip(padded, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = []
    for segment in decoder.seg() or []:
        word = re.sub(r"\(\d+\)$", "", segment.word)
        if not word.startswith(("<", "[")):
            found.append((word, segment.start_frame * FRAME_S - PAD_S, (segment.end_frame + 1) * FRAME_S - PAD_S))
    return found


def main() -> None:
    """Align the first utterances of every voice and print the comparison."""
    per_voice = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times = {row["segment_id"]: row["words"] for row in pq.read_table(HERE / "word_times.parquet").to_pylist()}
    with (HERE / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    decoder = open_decoder()
    noise = np.random.default_rng(0)
    starts, ends, failed, taken = defaultdict(list), defaultdict(list), defaultdict(int), defaultdict(int)
    for row in rows:
        voice = row["voice"]
        if taken[voice] >= per_voice:
            continue
        taken[voice] += 1
        first = round(float(row["offset_s"]) * 16_000)
        samples, _ = sf.read(HERE / row["audio"], start=first, frames=round(float(row["duration_s"]) * 16_000))
        found = align(decoder, samples, row["text"], noise)
        if [word for word, _, _ in found] != row["text"].split():
            failed[voice] += 1
            continue
        for (_, start, end), truth in zip(found, times[row["segment_id"]], strict=True):
            starts[voice].append((start - truth["start_s"]) * 1000)
            ends[voice].append((end - truth["end_s"]) * 1000)
    print("voice                n  failed  mean ms  median ms  <=50 ms %  start bias  end bias")
    for voice in taken:
        error = np.abs(np.array(starts[voice] + ends[voice]))
        print(
            f"{voice:20} {taken[voice]:2} {failed[voice]:6} {error.mean():9.1f} {np.median(error):9.1f}"
            f" {100 * (error <= 50).mean():10.1f} {np.mean(starts[voice]):10.1f} {np.mean(ends[voice]):10.1f}"
        )


if __name__ == "__main__":
    main()
