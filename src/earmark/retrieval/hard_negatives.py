"""The surfaces that each surface is most easily taken for: what a pooled retriever learns to keep apart.

Two sources: the nearest by the vectors of a retriever that was trained before, and the nearest by pronunciation. Only
surfaces of terms that some training chunk holds are mined, and mined for: a term without training audio is never a
negative, so the model does not learn that it is absent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from earmark.artifacts import read_table, write_table
from earmark.errors import InputError
from earmark.pronunciations import EnglishPronouncer, Phonemes
from earmark.retrieval.homophones import Homophones
from earmark.retrieval.index import index_surfaces
from earmark.retrieval.model import TermRetriever, embed_surfaces, load_retriever
from earmark.retrieval.split_rows import read_split, read_surfaces
from earmark.retrieval.term_targets import heard_surfaces

log = logging.getLogger(__name__)

HARD_NEGATIVES = pa.schema(
    [
        ("surface", pa.string()),
        ("negative", pa.string()),  # another surface, of another main term, pronounced otherwise
        ("source", pa.string()),  # index | pronunciation
        ("score", pa.float64()),  # cosine, or 1 - phoneme edits / phonemes of the longer
        ("round", pa.int32()),  # in which it was found last, from 1
    ]
)
_BLOCK = 512  # surfaces compared with all others at once


def mine_hard_negatives(
    model: Path,
    train: Path,
    glossary: Path,
    alt2main: Path,
    output: Path,
    *,
    earlier: Path | None,
    number: int,
    k: int,
    pronunciation: bool,
    language: str,
    lexicon: Mapping[str, Sequence[Phonemes]],
    index: str,
    threads: int,
) -> None:
    """Write `output` (HARD_NEGATIVES): for each heard surface up to `k` negatives of each source, best first.

    `model` is the pooled retriever of the round before round `number`, `train` the split it was trained on, `index` a
    kind of FAISS index (see `pooled_index`). Negatives of the table `earlier` are kept beside the new ones.
    `pronunciation`: also compare by sound (English, with `lexicon`). Homophones are known where `language` is English,
    whether their sounds are compared or not. InputError if `model` is not a pooled retriever.
    """
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    surfaces = heard_surfaces(read_split(train), read_surfaces(glossary, alt2main))
    english = language.split("-")[0] == "en"
    retriever = load_retriever(model)
    if retriever.term_units is not None:
        raise InputError(f"{model}: hard negatives are those of a pooled retriever; set retrieval.interaction: pooled")
    homophones = Homophones(surfaces, EnglishPronouncer(lexicon) if pronunciation or english else None)
    found = nearest_by_vector(retriever, surfaces, homophones, k, index)
    rows = [(*pair, "index", score, number) for pair, score in found.items()]
    if pronunciation:
        silent = sum(not ways for ways in homophones.said.values())
        if silent:
            log.warning("%d of %d surfaces cannot be pronounced: they get no near-homophones", silent, len(surfaces))
        by_sound = nearest_by_sound(surfaces, homophones, k, threads)
        rows += [(*pair, "pronunciation", score, number) for pair, score in by_sound.items()]
    if earlier is not None:
        again = {row[:3] for row in rows}
        kept = (tuple(row.values()) for row in read_table(earlier).to_pylist())
        rows += [row for row in kept if row[:3] not in again and row[0] in surfaces and row[1] in surfaces]
    columns = list(zip(*sorted(rows, key=lambda row: (row[0], row[2], -row[3], row[1])), strict=True))
    table = pa.Table.from_arrays(
        [
            pa.array(column, field.type)
            for column, field in zip(columns or [()] * len(HARD_NEGATIVES), HARD_NEGATIVES, strict=True)
        ],
        schema=HARD_NEGATIVES,
    )
    write_table(output, table)
    log.info("%s: %d hard negatives for %d surfaces that training hears", output, len(rows), len(surfaces))


def read_hard_negatives(path: Path) -> dict[str, list[str]]:
    """Surface -> its negatives, each once."""
    table = read_table(path)
    if table.schema.names != HARD_NEGATIVES.names:
        raise InputError(f"{path}: holds no hard negatives ({HARD_NEGATIVES.names}); delete it and run mine again")
    negatives: dict[str, dict[str, None]] = {}
    for surface, negative in zip(table["surface"].to_pylist(), table["negative"].to_pylist(), strict=True):
        negatives.setdefault(surface, {})[negative] = None
    return {surface: list(others) for surface, others in negatives.items()}


def nearest_by_vector(
    model: TermRetriever, surfaces: Mapping[str, str], homophones: Homophones, k: int, kind: str
) -> dict[tuple[str, str], float]:
    """{(surface, negative): cosine} of the nearest `k` in an index of the surfaces' vectors."""
    index, _ = index_surfaces(model, surfaces, kind)
    names = list(index.surfaces)
    # Those of its own term, and those that sound alike, take places of the list.
    room = k + _most_surfaces_of_a_term(surfaces) + homophones.most_alike
    found: dict[tuple[str, str], float] = {}
    for start in range(0, len(names), _BLOCK):
        block = names[start : start + _BLOCK]
        with torch.inference_mode():
            rows, scores = index.rows.search({"sentence_embedding": embed_surfaces(model, block)}, room)
        for surface, others, values in zip(block, rows, scores, strict=True):
            ranked = [(names[row], float(score)) for row, score in zip(others, values, strict=True) if row >= 0]
            found |= _first(surface, ranked, surfaces, homophones, k)
    return found


def nearest_by_sound(
    surfaces: Mapping[str, str], homophones: Homophones, k: int, threads: int
) -> dict[tuple[str, str], float]:
    """{(surface, negative): 1 - edits / phonemes of the longer} of the nearest `k`, each surface said its first way.

    Every pair is compared.
    """
    said = {surface: ways[0] for surface, ways in homophones.said.items() if ways}
    names, spelled = list(said), list(said.values())
    room = k + _most_surfaces_of_a_term(surfaces) + homophones.most_alike
    found: dict[tuple[str, str], float] = {}
    for start in range(0, len(names), _BLOCK):
        block = process.cdist(
            spelled[start : start + _BLOCK], spelled, scorer=Levenshtein.normalized_similarity, workers=threads
        )
        for surface, scores in zip(names[start : start + _BLOCK], block, strict=True):
            nearest = np.argsort(-scores, kind="stable")[:room]
            ranked = [(names[row], float(scores[row])) for row in nearest if scores[row] > 0]
            found |= _first(surface, ranked, surfaces, homophones, k)
    return found


def _most_surfaces_of_a_term(surfaces: Mapping[str, str]) -> int:
    return max(Counter(surfaces.values()).values())


def _first(
    surface: str, ranked: Sequence[tuple[str, float]], surfaces: Mapping[str, str], homophones: Homophones, k: int
) -> dict[tuple[str, str], float]:
    """The first `k` of `ranked` that may stand against `surface`: of another term, and not said alike."""
    allowed = (
        ((surface, other), score)
        for other, score in ranked
        if surfaces[other] != surfaces[surface] and not homophones.alike(surface, other)
    )
    return dict(pair for pair, _ in zip(allowed, range(k), strict=False))
