"""Dealing the training speakers out to folds, so that every training chunk can be ranked by who has not heard it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from earmark.artifacts import SPLITS, StageTable, read_table, write_table
from earmark.errors import ConfigError

log = logging.getLogger(__name__)

WITHOUT_FOLDS = "set evaluate.held_out_chunks and speech_llm.hints to 0"


def deal_speakers(chunks: Mapping[str, int], folds: int) -> dict[str, int]:
    """Speaker -> fold, from 0, such that folds hold about as many chunks each; `chunks` counts those of a speaker.

    The speaker with the most chunks is dealt first, each to the fold that has the fewest; names decide ties.
    ConfigError if there are fewer speakers than folds.
    """
    if len(chunks) < folds:
        remedy = "lower train.folds" if len(chunks) > 1 else f"{WITHOUT_FOLDS}, or add speakers"
        raise ConfigError(
            f"train.folds is {folds}, but the training chunks have {len(chunks)} speakers, and each fold needs one "
            f"that the others have not heard; {remedy}"
        )
    sizes = [0] * folds
    fold_of = {}
    for speaker in sorted(chunks, key=lambda speaker: (-chunks[speaker], speaker)):
        fold = sizes.index(min(sizes))
        fold_of[speaker] = fold
        sizes[fold] += chunks[speaker]
    return fold_of


def fold_splits(train: Path, dev: Path, output: Path, *, folds: int) -> None:
    """Write `output`/{fold}/train.parquet, dev.parquet and held_out.parquet (all SPLITS) for each fold, from 0.

    held_out are the chunks of the fold's speakers: over all folds, every chunk of `train` once. train are the chunks of
    all other speakers; rejected there is shared_recording, a chunk of a recording in which one of the fold's
    speakers speaks too. dev are the chunks of `dev`. In all three, seen_term says what the fold's training hears.
    ConfigError if a fold has nobody to hold out, or nothing to train on.
    """
    chunks, dev_chunks = read_table(train), read_table(dev)
    counts = Counter(chunks["speaker_id"].to_pylist())
    fold_of = deal_speakers(counts, folds)
    for fold in range(folds):
        speakers = sorted(speaker for speaker, of in fold_of.items() if of == fold)
        is_held_out = pc.is_in(chunks["speaker_id"], pa.array(speakers, pa.string()))
        held_out, others = chunks.filter(is_held_out), chunks.filter(pc.invert(is_held_out))
        is_shared = pc.is_in(others["recording_id"], pc.unique(held_out["recording_id"]))
        kept, shared = others.filter(pc.invert(is_shared)), others.filter(is_shared)
        if not kept.num_rows:
            raise ConfigError(
                f"{train}: every recording holds a speaker of fold {fold} ({', '.join(speakers[:5])}), so that nothing "
                f"is left to train it on; {WITHOUT_FOLDS}, or give recordings of single speakers"
            )
        heard = _heard(kept)
        folder = output / str(fold)
        table = StageTable(folder / "train.parquet", SPLITS, unit="chunks", max_rejected_fraction=1.0)
        with table:
            table.rejected.input = others.num_rows
            table.keep_table(_with_seen(kept, heard))
            for row in shared.select(["chunk_id", "recording_id"]).to_pylist():
                detail = f"in recording {row['recording_id']} a speaker speaks who is held out"
                table.reject(row["chunk_id"], "shared_recording", detail)
        write_table(folder / "dev.parquet", _with_seen(dev_chunks, heard))
        write_table(folder / "held_out.parquet", _with_seen(held_out, heard))
        log.info("fold %d: trained on %d chunks, %d held out (%s)", fold, kept.num_rows, len(held_out), speakers[:20])


def _heard(chunks: pa.Table) -> pa.Array:
    """The main terms that some of the chunks hold whole."""
    with_term = chunks.filter(chunks["has_term"])
    spoken: list[Any] = [*with_term["main_term"].to_pylist(), *pc.list_flatten(with_term["other_terms"]).to_pylist()]
    return pa.array(sorted(set(spoken)), pa.string())


def _with_seen(chunks: pa.Table, heard: pa.Array) -> pa.Table:
    """The chunks with seen_term told by `heard`; null where there is no term, as ever."""
    seen = pc.if_else(chunks["has_term"], pc.is_in(chunks["main_term"], heard), pa.scalar(None, pa.bool_()))
    columns = {name: seen if name == "seen_term" else chunks[name] for name in SPLITS.names}
    return pa.table(columns, schema=SPLITS)
