r"""How long a query takes: a clip of two seconds against 200,000 terms, encoding included.

    .venv/bin/python benchmarks/query.py [--run data/demo] [--terms 200000] [--clips 50] [--threads 2] \
        [--encoder-precision int8]

The terms are pairs of words of the English dictionary, weighed against the everyday words of the run's index
(--background none: not); the clips are cut from the run's chunks. Beside it what one would run instead: the clip
through stock Whisper, and its text searched by rapidfuzz. Beside other work, the CPU time of one thread tells more than
the clock does.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from earmark.artifacts import iterate_rows
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.evaluation.distractors import distractor_words
from earmark.evaluation.transcript_match import TranscriptMatcher
from earmark.evaluation.transcripts import load_transcriber
from earmark.retrieval.alignment_index import AlignmentIndex
from earmark.retrieval.index import index_surfaces, load_index
from earmark.retrieval.model import PRECISIONS, hear, load_retriever

DEMO = Path("data/demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, default=200_000)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--transcribed", type=int, default=5, help="clips that Whisper transcribes; 0: none")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a clip")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, default=DEMO, help="a finished run: its retriever and its background")
    parser.add_argument("--encoder-precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--background", choices=["index", "none"], default="index")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clips = some_clips(arguments.run, arguments.clips, round(arguments.seconds * SAMPLE_RATE))
    terms = some_terms(arguments.terms)
    model = load_retriever(arguments.run / "models/retriever")
    model.encoder_precision = arguments.encoder_precision
    begun = time.perf_counter()
    with_background = arguments.background == "index"
    background = load_index(arguments.run / "index/retriever", model).background if with_background else None
    index, _ = index_surfaces(model, {term: term for term in terms}, background=background)
    index.scores(hear(model, model.preprocess(clips[:1])), arguments.candidates)  # what is made at the first search
    print(f"{len(index.surfaces):,} rows for {len(terms):,} terms, indexed in {time.perf_counter() - begun:.1f} s")
    with torch.inference_mode():
        spectrograms = [model.preprocess([clip]) for clip in clips]
        heard = [hear(model, dict(spectrogram)) for spectrogram in spectrograms]
        show("spectrogram", lambda clip: model.preprocess([clip]), clips)
        show("encoder and heads", lambda spectrogram: hear(model, dict(spectrogram)), spectrograms)
        if isinstance(rows := index.rows, AlignmentIndex):
            vectors = [item["sentence_embedding"][0].cpu().numpy() for item in heard]
            show("candidates", lambda vector: rows.candidates(vector, arguments.candidates), vectors)
        show("encoding", lambda clip: hear(model, model.preprocess([clip])), clips)
        show("searching", lambda item: index.scores(item, arguments.candidates), heard)
        show(
            "both",
            lambda clip: index.scores(hear(model, model.preprocess([clip])), arguments.candidates),
            clips,
        )
    if arguments.transcribed:
        transcriber, matcher = load_transcriber("bundled:whisper-tiny.en"), TranscriptMatcher(terms)
        show("Whisper's transcript", lambda clip: transcriber.transcribe([clip]), clips[: arguments.transcribed])
        texts = transcriber.transcribe(clips[: arguments.transcribed])
        show("rapidfuzz in it", lambda text: matcher.scores([text]), texts)


def some_clips(run: Path, count: int, samples: int) -> list[np.ndarray]:
    rows = (row for path in sorted((run / "chunks").glob("*.parquet")) for row in iterate_rows(path, columns=["audio"]))
    decoded = (decode_audio(row["audio"]["bytes"]) for row in rows)
    return [clip[:samples] for clip in itertools.islice((clip for clip in decoded if len(clip) >= samples), count)]


def some_terms(count: int) -> list[str]:
    words = distractor_words(100_000, set(), set(), seed=0)
    random = np.random.default_rng(0)
    pairs = (f"{words[first]} {words[second]}" for first, second in random.integers(0, len(words), (2 * count, 2)))
    return list(itertools.islice(dict.fromkeys(pairs), count))


def show(name: str, work: Callable, items: list) -> None:
    times_ms, cpu_ms = [], []
    for item in items:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        work(item)
        times_ms.append(1000 * (time.perf_counter() - begun))
        cpu_ms.append(1000 * (time.process_time() - cpu_begun))
    print(
        f"{name:22} median {np.median(times_ms):8.1f} ms, 95 % {np.percentile(times_ms, 95):8.1f} ms, "
        f"of CPU {np.median(cpu_ms):8.1f} ms"
    )


if __name__ == "__main__":
    main()
