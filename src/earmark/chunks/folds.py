"""Dealing the training speakers out to folds, so that every training chunk can be ranked by who has not heard it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from earmark.artifacts import SPLITS, read_table, write_table
from earmark.chunks.splits import seen_terms, terms_in
from earmark.errors import ConfigError

log = logging.getLogger(__name__)

WITHOUT_FOLDS = "set evaluate.held_out_chunks and speech_llm.hints to 0"


def groups_of(chunks: pa.Table) -> np.ndarray:
    """The group of each chunk's speaker, from 0, as their first chunks come: who share a recording are of one group."""
    speakers, recordings = (
        chunks[name].combine_chunks().dictionary_encode() for name in ("speaker_id", "recording_id")
    )
    pairs = speakers.indices.to_numpy(), len(speakers.dictionary) + recordings.indices.to_numpy()
    size = len(speakers.dictionary) + len(recordings.dictionary)
    meetings = sparse.coo_matrix((np.ones(len(chunks), bool), pairs), shape=(size, size))
    _, group = sparse.csgraph.connected_components(meetings, directed=False)
    return group[pairs[0]]


def deal_groups(chunks: Mapping[int, int], folds: int) -> dict[int, int]:
    """Group of speakers -> fold, from 0, such that folds hold about as many chunks each; `chunks` counts a group's.

    The group with the most chunks is dealt first, each to the fold that has the fewest; numbers decide ties.
    ConfigError if there are fewer groups than folds.
    """
    if len(chunks) < folds:
        remedy = "lower train.folds" if len(chunks) > 1 else f"{WITHOUT_FOLDS}, or add speakers"
        raise ConfigError(
            f"train.folds is {folds}, but the training chunks have {len(chunks)} speakers, or groups of speakers who "
            f"share recordings, and each fold needs one that the others have not heard; {remedy}"
        )
    sizes = [0] * folds
    fold_of = {}
    for group in sorted(chunks, key=lambda group: (-chunks[group], group)):
        fold = sizes.index(min(sizes))
        fold_of[group] = fold
        sizes[fold] += chunks[group]
    return fold_of


def fold_splits(train: Path, dev: Path, output: Path, *, folds: int) -> None:
    """Write `output`/{fold}/train.parquet, dev.parquet and held_out.parquet (all SPLITS) for each fold, from 0.

    held_out are the chunks of the fold's speakers: over all folds, every chunk of `train` once. train are the chunks of
    all others, who share no recording with them. dev are the chunks of `dev`. In all three, seen_term says what the
    fold's training hears. ConfigError if a fold has nobody to hold out, or its training hears no term of dev.
    """
    chunks, dev_chunks = read_table(train), read_table(dev)
    group = groups_of(chunks)
    fold_of = deal_groups(Counter(group.tolist()), folds)
    fold_of_chunk = np.array([fold_of[number] for number in group.tolist()])
    for fold in range(folds):
        held_out, kept = (chunks.filter(pa.array(is_of)) for is_of in (fold_of_chunk == fold, fold_of_chunk != fold))
        heard = pa.array(sorted(terms_in(kept)), pa.string())
        fold_dev = _with_seen(dev_chunks, heard)
        speakers = sorted(pc.unique(held_out["speaker_id"]).to_pylist())
        if not pc.any(fold_dev["seen_term"]).as_py():
            raise ConfigError(
                f"{train}: without the speakers of fold {fold} of {folds} ({', '.join(speakers[:5])}) training hears "
                f"no term that dev has, so that no epoch could be chosen; raise train.folds, or {WITHOUT_FOLDS}"
            )
        folder = output / str(fold)
        write_table(folder / "train.parquet", _with_seen(kept, heard))
        write_table(folder / "dev.parquet", fold_dev)
        write_table(folder / "held_out.parquet", _with_seen(held_out, heard))
        log.info("fold %d: trained on %d chunks, %d held out (%s)", fold, len(kept), len(held_out), speakers[:20])


def _with_seen(chunks: pa.Table, heard: pa.Array) -> pa.Table:
    """The chunks with seen_term told by `heard`."""
    seen = seen_terms(chunks, heard)
    return pa.table({name: seen if name == "seen_term" else chunks[name] for name in SPLITS.names}, schema=SPLITS)
