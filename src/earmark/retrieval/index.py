"""The index a retriever searches: one vector for every surface of the glossary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch

from earmark.artifacts import TERMS, atomic_path, read_table, write_table
from earmark.errors import InputError
from earmark.retrieval.model import load_retriever
from earmark.retrieval.split_rows import read_surfaces


@dataclass(frozen=True)
class TermIndex:
    """A FAISS index whose row i is `surfaces[i]`, a spelling of `main_terms[i]`."""

    index: faiss.Index
    surfaces: tuple[str, ...]
    main_terms: tuple[str, ...]

    @cached_property
    def vectors(self) -> np.ndarray:
        """What the index holds, vectors[surfaces, dim] in float32: a flat index stores them as they are."""
        return self.index.reconstruct_n(0, self.index.ntotal)

    def scores(self, audio: np.ndarray) -> np.ndarray:
        """Inner products of audio[B, dim] with every surface, scores[B, surfaces].

        A search would sort the surfaces, only for a ranking of main terms to put them back into the index's order.
        """
        return audio.astype(np.float32, copy=False) @ self.vectors.T


def build_index(model: Path, glossary: Path, alt2main: Path, index: Path, terms: Path, *, threads: int) -> None:
    """Embed every main term and alias; write the FAISS index and, row for row, their table (schema TERMS).

    The index is flat (exact) over inner products, which are cosines of unit vectors. InputError if `model` holds no
    retriever or the glossary is not usable.
    """
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    surfaces = read_surfaces(glossary, alt2main)
    vectors = load_retriever(model).encode(list(surfaces), convert_to_numpy=True)
    if not np.isfinite(vectors).all():
        raise InputError(f"{model}: gives vectors that are not finite; train it again")
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(np.ascontiguousarray(vectors, np.float32))
    rows = [
        {"row": row, "surface": surface, "main_term": main_term}
        for row, (surface, main_term) in enumerate(surfaces.items())
    ]
    with atomic_path(index) as temporary:
        faiss.write_index(flat, str(temporary))
    write_table(terms, pa.Table.from_pylist(rows, schema=TERMS))


def load_index(index: Path, terms: Path) -> TermIndex:
    """Read an index and its table; InputError if one is missing or they do not belong together."""
    if not index.is_file():
        raise InputError(f"{index}: there is no such file; run the index stage")
    try:
        loaded = faiss.read_index(str(index))
    except RuntimeError:
        raise InputError(f"{index}: not a FAISS index; delete it and run the index stage again") from None
    table = read_table(terms)
    rows = table["row"].to_pylist()
    if rows != list(range(loaded.ntotal)):
        raise InputError(
            f"{index} has {loaded.ntotal} rows and {terms} lists {len(rows)}, which must be the same rows in the same "
            "order; run the index stage again"
        )
    return TermIndex(loaded, tuple(table["surface"].to_pylist()), tuple(table["main_term"].to_pylist()))
