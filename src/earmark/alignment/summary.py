"""What the alignment of a whole run amounts to: alignment.json."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from earmark.alignment.accuracy import score_alignments
from earmark.artifacts import write_json

QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


def write_summary(alignments: list[Path], corpus: list[Path], reference: Path | None, output: Path) -> None:
    """Write alignment.json: {aligners, segments, words, untrusted_words, words_differ, quality, accuracy}.

    `aligners`: segments by the name of their aligner. `words_differ`: segments that were kept with other words than
    their transcript's. `quality`: quantiles over segments, null where the aligner scores none. `accuracy`: see
    score_alignments, null where no word times are known.
    """
    aligners: Counter[str] = Counter()
    words = untrusted = differing = 0
    qualities = [np.empty(0)]
    for path in alignments:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["aligner", "status", "quality", "words"]):
                aligners.update(batch["aligner"].to_pylist())
                differing += pc.sum(pc.equal(batch["status"], "words_differ")).as_py() or 0
                qualities.append(batch["quality"].drop_null().to_numpy())
                trusted = batch["words"].flatten().field("trusted")
                words += len(trusted)
                untrusted += len(trusted) - (pc.sum(trusted).as_py() or 0)
    quality = np.concatenate(qualities)
    summary = {
        "aligners": dict(sorted(aligners.items())),
        "segments": aligners.total(),
        "words": words,
        "untrusted_words": untrusted,
        "words_differ": differing,
        "quality": {name: round(float(np.quantile(quality, q)), 3) for name, q in QUANTILES.items()}
        if len(quality)
        else None,
        "accuracy": score_alignments(alignments, corpus, reference) if reference else None,
    }
    write_json(output, summary)
    logging.info("%d segments, %d words, %d of them untrusted", summary["segments"], words, untrusted)
