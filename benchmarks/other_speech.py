"""How a trained retriever hears other speech than it was trained and tested on: the chunks of another run.

    .venv/bin/snakemake --profile profiles/local --configfile mine.yaml chunks
    .venv/bin/python benchmarks/other_speech.py data/mine [--distractors 10000]

For every chunk of the run: the rank of its term among the run's glossary and the distractors, words that are not said
in these chunks; then the figures. No threshold is set anew: that of the model's own run is applied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from earmark.artifacts import iterate_rows
from earmark.audio import decode_audio
from earmark.evaluation.distractors import distractor_words
from earmark.evaluation.measures import RECALL_AT
from earmark.files import read_json
from earmark.retrieval.index import index_surfaces, load_index
from earmark.retrieval.model import hear, load_retriever
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores
from earmark.retrieval.split_rows import read_surfaces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the run whose chunks are heard")
    parser.add_argument("--model", type=Path, default=Path("data/demo/models/retriever"))
    parser.add_argument("--distractors", type=int, default=10_000)
    arguments = parser.parse_args()
    model = load_retriever(arguments.model)
    metrics = read_json(arguments.model.parents[1] / "evaluation" / arguments.model.name / "metrics.json")
    surfaces = read_surfaces(arguments.run / "glossary/glossary.json", arguments.run / "glossary/alt2main.json")
    chunks = [row for path in sorted((arguments.run / "chunks").glob("*.parquet")) for row in iterate_rows(path)]
    spoken = {word for row in chunks for word in row["text"].split()}
    words = distractor_words(arguments.distractors, spoken, surfaces, seed=0)
    # As the run's own figures are made: its threshold is read below.
    background = load_index(arguments.model.parents[1] / "index" / arguments.model.name, model).background
    index, _ = index_surfaces(model, {**surfaces, **{word: word for word in words}}, background=background)
    small, _ = index_surfaces(model, surfaces, background=background)
    columns = TermColumns.of(index.main_terms)
    ranks, best = [], {True: [], False: []}
    for row in chunks:
        with torch.inference_mode():
            heard = hear(model, model.preprocess([decode_audio(row["audio"]["bytes"])]))
            scores = term_scores(index.scores(heard, 1000), columns)[0]
            best[row["has_term"]].append(float(small.scores(heard, 1000).max()))
        first = columns.terms[int(scores.argmax())]
        if row["has_term"]:
            ranks.append(rank_of(scores, columns, row["main_term"], row["other_terms"]))
            print(f"{row['main_term']}: rank {ranks[-1]}, first {first!r} ({scores.max():.1f}) in: {row['text']}")
        else:
            print(f"no term: first {first!r} ({scores.max():.1f}) in: {row['text']}")
    if ranks:
        recalls = ", ".join(f"R@{k} {np.mean(np.array(ranks) <= k):.3f}" for k in RECALL_AT)
        print(f"{len(ranks)} term chunks among {len(columns.terms):,} terms: {recalls}")
    threshold = metrics["rejection_threshold"]
    wrong = sum(score <= threshold for score in best[True]), sum(score > threshold for score in best[False])
    print(
        f"the run's glossary alone, threshold {threshold:.1f}: {wrong[0]} of {len(best[True])} term chunks rejected, "
        f"{wrong[1]} of {len(best[False])} no-term chunks accepted"
    )


if __name__ == "__main__":
    main()
