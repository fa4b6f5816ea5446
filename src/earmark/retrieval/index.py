"""The glossary as a retriever searches it: a row for every surface, and for every way to say it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch

from earmark.artifacts import BACKGROUND, TERMS, RejectedRows, atomic_folder, read_table, write_table
from earmark.errors import InputError
from earmark.retrieval.alignment_index import AlignmentIndex
from earmark.retrieval.background import Background, background_words
from earmark.retrieval.model import TermRetriever, embed_surfaces, load_retriever
from earmark.retrieval.pooled_index import PooledIndex
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower
from earmark.retrieval.split_rows import read_surfaces
from earmark.retrieval.term_units import TermUnits

log = logging.getLogger(__name__)

_CHECKSUM_KEY = b"earmark_index_sha256"
_MODEL_KEY = b"earmark_text_route_sha256"
_BATCH = 1024  # surfaces embedded at once


@dataclass(frozen=True)
class TermIndex:
    """Row i is `surfaces[i]`, a spelling of `main_terms[i]`."""

    surfaces: tuple[str, ...]
    main_terms: tuple[str, ...]
    rows: AlignmentIndex | PooledIndex

    @property
    def background(self) -> Background | None:
        """The words that terms are weighed against, where there are any."""
        return self.rows.background if isinstance(self.rows, AlignmentIndex) else None

    def scores(self, heard: Mapping[str, Any], candidates: int) -> np.ndarray:
        """scores[B, rows] of heard chunks (`model.hear`); -inf for rows that are not among a chunk's `candidates`."""
        found, values = self.rows.search(heard, candidates)
        scores = np.full((len(found), len(self.surfaces)), -np.inf, np.float32)
        chunk = np.repeat(np.arange(len(found)), found.shape[1])[found.ravel() >= 0]
        scores[chunk, found[found >= 0]] = values[found >= 0]
        return scores


def index_surfaces(
    model: TermRetriever, surfaces: Mapping[str, str], kind: str = "auto", background: Background | None = None
) -> tuple[TermIndex, list[str]]:
    """The index of surfaces (surface -> main term), and those that have no spelling. InputError if none has one.

    `kind` is FAISS's, for a pooled retriever: see `pooled_index`. `background`: of one that aligns.
    """
    units = model.term_units
    if units is None:
        return TermIndex(tuple(surfaces), tuple(surfaces.values()), PooledIndex.of(_vectors(model, surfaces), kind)), []
    index, unspelled = _aligned(units, surfaces, background)
    if not index.surfaces:
        raise InputError("none of the surfaces can be pronounced; add their words to align.embedded.lexicon")
    return index, unspelled


def _aligned(
    units: TermUnits, surfaces: Mapping[str, str], background: Background | None
) -> tuple[TermIndex, list[str]]:
    spelled = {surface: units.spellings(surface) for surface in surfaces}
    names = tuple(surface for surface, spellings in spelled.items() for _ in spellings)
    ids = [ids for spellings in spelled.values() for ids in spellings]
    rows = AlignmentIndex(ids, len(units.inventory), background)
    unspelled = [surface for surface, spellings in spelled.items() if not spellings]
    return TermIndex(names, tuple(surfaces[name] for name in names), rows), unspelled


def build_index(
    model: Path,
    glossary: Path,
    alt2main: Path,
    output: Path,
    *,
    kind: str,
    threads: int,
    max_rejected_fraction: float,
    background_count: int = 0,
    language: str = "en",
) -> None:
    """Write the index of every main term and alias as the folder `output`, which appears when whole.

    terms.parquet (TERMS), a row for each surface and, where the interaction is alignment, each of its spellings; for a
    pooled retriever also terms.faiss, row for row. Where the interaction is alignment, background.parquet (BACKGROUND)
    holds the `background_count` most frequent words of `language`, which terms are weighed against. Rejected:
    unpronounceable surfaces. InputError if `model` holds no retriever or the glossary is not usable.
    """
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    surfaces = read_surfaces(glossary, alt2main)
    retriever = load_retriever(model)
    units = retriever.term_units
    background = background_words(units, language, background_count) if units is not None else None
    index, unspelled = index_surfaces(retriever, surfaces, kind, background)
    rejected = RejectedRows("surfaces", max_rejected_fraction)
    rejected.input, rejected.kept = len(surfaces), len(surfaces) - len(unspelled)
    for surface in unspelled:
        rejected.reject(
            surface, "unpronounceable", "add its words to align.embedded.lexicon, or spell it out as an alias"
        )
    rejected.close(output)
    write_index(index, output, retriever)
    log.info("%s: %d rows for %d surfaces", output, len(index.surfaces), rejected.kept)


def add_surfaces(folder: Path, model: Path, surfaces: Mapping[str, str]) -> list[str]:
    """Add surfaces (surface -> main term) to the index in `folder`, without training; return those without a spelling.

    What the index holds already is passed over.
    """
    retriever = load_retriever(model)
    index = load_index(folder, retriever)
    known = set(index.surfaces)
    new = {surface: main for surface, main in surfaces.items() if surface not in known}
    if not new:
        return []
    unspelled: list[str] = []
    if isinstance(index.rows, PooledIndex):
        index.rows.index.add(_vectors(retriever, new))
        grown = TermIndex((*index.surfaces, *new), (*index.main_terms, *new.values()), index.rows)
    else:
        assert retriever.term_units is not None
        added, unspelled = _aligned(retriever.term_units, new, index.background)
        assert isinstance(added.rows, AlignmentIndex)
        spellings = [*index.rows.spellings, *added.rows.spellings]
        rows = AlignmentIndex(spellings, index.rows.inventory_size, index.background)
        grown = TermIndex((*index.surfaces, *added.surfaces), (*index.main_terms, *added.main_terms), rows)
    write_index(grown, folder, retriever)
    return unspelled


def write_index(index: TermIndex, folder: Path, model: TermRetriever) -> None:
    """Put the index in the place of `folder`: terms.parquet, its background, and terms.faiss, whose checksum is there.

    The table also names the model's text route by a digest: another one spells or embeds terms otherwise.
    """
    with atomic_folder(folder) as scratch:
        metadata = {_MODEL_KEY: _text_route(model)}
        if isinstance(index.rows, PooledIndex):
            faiss.write_index(index.rows.index, str(scratch / "terms.faiss"))
            metadata[_CHECKSUM_KEY] = _checksum(scratch / "terms.faiss")
            spellings: list[Any] = [None] * len(index.surfaces)
        else:
            spellings = list(index.rows.spellings)
        columns = [range(len(index.surfaces)), index.surfaces, index.main_terms, spellings]
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, TERMS, strict=True)], schema=TERMS
        )
        write_table(scratch / "terms.parquet", table.replace_schema_metadata(metadata))
        if (words := index.background) is not None:
            arrays = [words.words, words.shares, words.spellings]
            background = [pa.array(column, field.type) for column, field in zip(arrays, BACKGROUND, strict=True)]
            write_table(scratch / "background.parquet", pa.Table.from_arrays(background, schema=BACKGROUND))


def load_index(folder: Path, model: TermRetriever) -> TermIndex:
    """Read the index of `model`; InputError if a part is missing or was made for another model."""
    path = folder / "terms.parquet"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; run the index stage")
    table = read_table(path)
    metadata = table.schema.metadata or {}
    if metadata.get(_MODEL_KEY) != _text_route(model):
        raise InputError(
            f"{folder}: the index was made for another retriever, or for this one trained otherwise; {_AGAIN}"
        )
    surfaces, main_terms = tuple(table["surface"].to_pylist()), tuple(table["main_term"].to_pylist())
    if model.term_units is not None:
        rows = AlignmentIndex(table["units"].to_pylist(), len(model.term_units.inventory), _read_background(folder))
        return TermIndex(surfaces, main_terms, rows)
    path = folder / "terms.faiss"
    if not path.is_file() or metadata.get(_CHECKSUM_KEY) != _checksum(path):
        raise InputError(f"{path}: is missing, or was not written together with terms.parquet beside it; {_AGAIN}")
    try:
        return TermIndex(surfaces, main_terms, PooledIndex(faiss.read_index(str(path))))
    except RuntimeError:
        raise InputError(f"{path}: not a FAISS index; {_AGAIN}") from None


def _read_background(folder: Path) -> Background | None:
    if not (folder / "background.parquet").is_file():
        return None
    table = read_table(folder / "background.parquet")
    return Background(*(table[column].to_pylist() for column in BACKGROUND.names))


_AGAIN = "run the index stage again"


def _checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def _vectors(model: TermRetriever, surfaces: Mapping[str, str]) -> np.ndarray:
    """Unit vectors[N, dim] in float32. InputError where one is not finite."""
    names = list(surfaces)
    with torch.inference_mode():
        batches = [embed_surfaces(model, names[row : row + _BATCH]) for row in range(0, len(names), _BATCH)]
    vectors = torch.cat(batches).float().cpu().numpy()
    if not np.isfinite(vectors).all():
        raise InputError("the model gives vectors that are not finite; train it again, with a lower learning rate")
    return vectors


def _text_route(model: TermRetriever) -> bytes:
    """A digest of what makes rows of surfaces: how they are spelled, or the weights that embed them."""
    router: Any = model[0]
    route = router.sub_modules["text"][0]
    configs, weights = [route.get_config_dict()], dict(route.state_dict())
    if isinstance(route, Qwen2TextTower):  # its language model stands elsewhere; the base is known by its digest
        configs.append({**route.owner.get_config_dict(), "source": "", "save_base": False})  # wherever that is
        weights.update(route.owner.trained_weights())
    digest = hashlib.sha256(b"".join(json.dumps(config, sort_keys=True).encode() for config in configs))
    for name, weight in sorted(weights.items()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest().encode()
