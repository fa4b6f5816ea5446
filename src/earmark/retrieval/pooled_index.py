"""Searching a glossary by vectors, with FAISS: on a GPU where it has one (package faiss-gpu), else on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np

from earmark.errors import ConfigError

log = logging.getLogger(__name__)

FLAT_ROWS = 50_000  # up to here every vector is compared: exact, a few milliseconds
HNSW_ROWS = 2_000_000  # up to here a graph in memory; above, vectors are compressed
KINDS = ("flat", "hnsw", "ivf_pq")
_LINKS = 32  # of a node of the graph
_CODE_BYTES = 64  # of a compressed vector, one for every four dimensions of 256
_TRAINING_ROWS_PER_LIST = 39  # FAISS warns below it
_GPU_LIMIT = 2048  # of the neighbours that FAISS finds on a GPU, and of the lists it looks for them in


class PooledIndex:
    """A FAISS index over unit vectors; row i is the i-th that was added.

    `index` is on the CPU: it is what is saved, and grown. A GPU searches a copy, made when it is first asked for.
    """

    def __init__(self, index: faiss.Index):
        self.index = index
        self._on_gpu: Any = None
        self._said = False

    @classmethod
    def of(cls, vectors: np.ndarray, kind: str) -> PooledIndex:
        """An index of vectors[N, dim] (float32, unit length). `kind`: one of KINDS, or auto by N.

        ConfigError for ivf_pq of fewer vectors than it can be trained on, or of a dimension it cannot divide.
        """
        rows, dim = vectors.shape
        chosen = auto_kind(rows) if kind == "auto" else kind
        index: Any
        if chosen == "flat":
            index = faiss.IndexFlatIP(dim)
        elif chosen == "hnsw":
            index = faiss.IndexHNSWFlat(dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        else:
            lists = min(65_536, max(1, rows // (4 * _TRAINING_ROWS_PER_LIST)))
            if rows < 256 * _TRAINING_ROWS_PER_LIST or dim % _CODE_BYTES:
                raise ConfigError(
                    f"retrieval.pooled.index: ivf_pq needs {256 * _TRAINING_ROWS_PER_LIST:,} vectors and a dimension "
                    f"that {_CODE_BYTES} divides; there are {rows:,} of dimension {dim}. Choose flat, hnsw or auto"
                )
            # np: codes in no particular order. By default FAISS orders them for a filter that is not used here, which
            # takes eight times as long as the rest of the training.
            index = faiss.index_factory(dim, f"IVF{lists},PQ{_CODE_BYTES}np", faiss.METRIC_INNER_PRODUCT)
            index.nprobe = max(1, lists // 16)
            index.train(vectors)
        index.add(vectors)
        return cls(index)

    def search(self, heard: Mapping[str, Any], candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """rows[B, K] and their scores[B, K], best first; K is `candidates`, or all rows if they are fewer.

        An approximate index may find fewer: their rows are -1.
        """
        wanted = min(candidates, self.index.ntotal)
        if isinstance(self.index, faiss.IndexHNSW):
            self.index.hnsw.efSearch = max(64, 2 * wanted)
        vectors = heard["sentence_embedding"].detach().float().cpu().numpy()
        scores, rows = self._searched(wanted).search(vectors, wanted)
        return rows, scores

    def _searched(self, wanted: int) -> Any:
        """The index, or its copy on a GPU if that can find so many neighbours."""
        if not 0 < wanted <= _GPU_LIMIT or not faiss.get_num_gpus():
            return self.index
        if isinstance(self.index, faiss.IndexHNSW) or getattr(self.index, "nprobe", 0) > _GPU_LIMIT:
            if not self._said:
                kind = "a graph" if isinstance(self.index, faiss.IndexHNSW) else f"more than {_GPU_LIMIT:,} lists"
                log.info("FAISS cannot search %s on a GPU: this index is searched on the CPU", kind)
                self._said = True
            return self.index
        if self._on_gpu is None or self._on_gpu.ntotal != self.index.ntotal:  # rows were added
            self._on_gpu = None  # so that there are never two
            options = faiss.GpuClonerOptions()
            # In float32, 64 tables of 256 numbers are 64 KB; a block of threads has 48 KB for them.
            options.useFloat16 = isinstance(self.index, faiss.IndexIVFPQ)
            self._on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index, options)
        return self._on_gpu


def auto_kind(rows: int) -> str:
    """flat, hnsw or ivf_pq for so many vectors."""
    if rows <= FLAT_ROWS:
        return "flat"
    return "hnsw" if rows <= HNSW_ROWS else "ivf_pq"
