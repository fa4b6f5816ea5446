"""What hearing in 8-bit integers costs in figures: the dev and test chunks of a finished run, heard in both precisions.

    .venv/bin/python benchmarks/encoder_precision.py [--run data/demo] [--words 10000]

As many words that nobody says are added to the glossary. `falsely rejected`: the term chunks whose best score is no
higher than that of the no-term chunk under which 95 % of those lie.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from earmark.artifacts import iterate_rows, read_table
from earmark.audio import decode_audio
from earmark.evaluation.distractors import distractor_words
from earmark.retrieval.index import TermIndex, index_surfaces, load_index
from earmark.retrieval.model import PRECISIONS, TermRetriever, hear, load_retriever
from earmark.text import normalise

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("data/demo"))
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=1000)
    arguments = parser.parse_args()
    model = load_retriever(arguments.run / "models/retriever")
    columns = ["chunk_id", "main_term", "text"]
    train, dev, test = (
        read_table(arguments.run / f"splits/{split}.parquet", columns=columns).to_pylist()
        for split in ("train", "dev", "test")
    )
    own = load_index(arguments.run / "index/retriever", model)
    surfaces = dict(zip(own.surfaces, own.main_terms, strict=True))
    spoken = {word for row in (*train, *dev, *test) for word in normalise(row["text"]).split()}
    words = distractor_words(arguments.words, spoken, surfaces, seed=0)
    index, _ = index_surfaces(model, {**{word: word for word in words}, **surfaces}, background=own.background)
    term_of = {row["chunk_id"]: row["main_term"] for row in (*dev, *test)}
    clips = {
        row["chunk_id"]: decode_audio(row["audio"]["bytes"])
        for path in sorted((arguments.run / "chunks").glob("*.parquet"))
        for row in iterate_rows(path, columns=["chunk_id", "audio"])
        if row["chunk_id"] in term_of
    }
    for precision in PRECISIONS:
        model.encoder_precision = precision
        scores = dict(scored(model, index, clips, arguments.candidates))
        print(f"{precision:8} {figures(index, scores, term_of)}")


def scored(
    model: TermRetriever, index: TermIndex, clips: dict[str, np.ndarray], candidates: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(chunk id, its score of each row), in batches of clips of like length."""
    by_length = sorted(clips, key=lambda chunk: clips[chunk].size)
    for start in range(0, len(by_length), BATCH):
        batch = by_length[start : start + BATCH]
        with torch.inference_mode():
            heard = hear(model, model.preprocess([clips[chunk] for chunk in batch]))
            yield from zip(batch, index.scores(heard, candidates), strict=True)


def figures(index: TermIndex, scores: dict[str, np.ndarray], term_of: dict[str, str | None]) -> str:
    terms = np.array(index.main_terms)
    ranks = []
    for chunk, row in scores.items():
        if (term := term_of[chunk]) is not None:
            ranks.append(len(set(terms[row > row[terms == term].max()])))
    has_term = np.array([term_of[chunk] is not None for chunk in scores])
    best = np.array([row.max() for row in scores.values()])
    threshold = np.quantile(best[~has_term], 0.95, method="higher")
    recalls = ", ".join(f"R@{k} {np.mean(np.array(ranks) < k):.3f}" for k in (1, 5, 10))
    rejected = np.mean(best[has_term] <= threshold)
    auroc = roc_auc_score(has_term, best)
    return (
        f"{len(ranks)} term chunks: {recalls}; {np.sum(~has_term)} no-term chunks: AUROC {auroc:.3f}, "
        f"falsely rejected {rejected:.3f}"
    )


if __name__ == "__main__":
    main()
