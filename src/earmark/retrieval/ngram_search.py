"""The rows of an index whose n-grams a chunk holds best: an exact search, over all rows.

A row has some twenty n-grams of 1,560 (`unit_ngrams`), and its product with a chunk's vector is the sum of as many of
that vector's values. A unit comes right behind a pair that ends with it: one value for both makes it thirteen. The
values lie in the processor's nearest cache; what is read from memory is which to add up, two bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from earmark.retrieval.machine_code import compiled

_LANES = 8  # rows that are added up together, each in a register of its own: one sum waits for its last addition


@dataclass(frozen=True)
class NgramSearch:
    """Rows by how many values they add up, eight to a block; what fills the last block up adds minus infinity."""

    rows: np.ndarray  # [blocks * 8], where each row stood
    counts: np.ndarray  # [blocks * 8], float32, of its n-grams
    ends: np.ndarray  # [blocks + 1], where each block's entries end, after a 0
    entries: np.ndarray  # which values: the first of each of a block's rows, the second of each, and so on

    @classmethod
    def of(cls, vectors: sparse.csr_matrix, inventory: int) -> NgramSearch:
        """`vectors`[rows, inventory ** 2 + inventory] of ones: `unit_ngrams.sparse_ngram_vectors`."""
        values = vectors.shape[1] + inventory**2
        rows, entries = _merged(vectors, inventory)
        counts = np.bincount(rows, minlength=vectors.shape[0])
        order = np.argsort(counts, kind="stable")
        blocks = -(-len(order) // _LANES)
        filled = np.pad(counts[order], (0, blocks * _LANES - len(order)), constant_values=1)
        ends = np.append(0, np.cumsum(_LANES * filled.reshape(blocks, _LANES).max(axis=1)))
        table = np.full(ends[-1], values, np.uint16 if values + 1 < 2**16 else np.uint32)
        table[ends[-2] + np.arange(len(order) % _LANES or _LANES, _LANES)] = values + 1
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        within = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        table[ends[place[rows] // _LANES] + _LANES * within + place[rows] % _LANES] = entries
        unused = (0, blocks * _LANES - len(order))
        ngrams = np.diff(vectors.indptr)[order].astype(np.float32)
        return cls(np.pad(order, unused), np.pad(ngrams, unused, constant_values=1), ends, table)

    def best(self, vector: np.ndarray, by_sum: int, by_mean: int) -> np.ndarray:
        """The rows of the `by_sum` largest products with `vector`, and of the rest the `by_mean` largest per n-gram.

        Of equal ones the first rows. There must be more rows than that. Any rows where `vector` is not a number.
        """
        if np.isnan(vector).any():
            return np.arange(by_sum + by_mean)
        inventory = round(((1 + 4 * len(vector)) ** 0.5 - 1) / 2)
        pairs, units = vector[: inventory**2], vector[inventory**2 :]
        values = np.concatenate([vector, pairs + np.tile(units, inventory), [0, -np.inf]]).astype(np.float32)
        sums, means = np.empty((2, len(self.rows)), np.float32)
        most_sum, most_mean = np.empty((2, len(self.rows) // _LANES), np.float32)
        _add_up(values, self.ends, self.entries, self.counts, sums, means, most_sum, most_mean)
        first = self._largest(sums, most_sum, by_sum)
        others = np.setdiff1d(self._largest(means, most_mean, by_sum + by_mean), first, assume_unique=True)
        others = others[np.lexsort((self.rows[others], -means[others]))[:by_mean]]
        return self.rows[np.concatenate([first, others])]

    def _largest(self, values: np.ndarray, most: np.ndarray, count: int) -> np.ndarray:
        """Where the `count` largest values stand, `most` being the largest of each block; of equal ones the first rows.

        Many are equal: of the words that hold the same heard n-grams, and nothing else.
        """
        near = np.arange(len(values))
        if len(most) > count:
            # As many blocks hold a value no smaller than this one, and no other block holds one of the largest.
            blocks = np.flatnonzero(most >= np.partition(most, -count)[-count])
            near = (_LANES * blocks[:, None] + np.arange(_LANES)).ravel()
        least = np.partition(values[near], -count)[-count]
        larger, equal = near[values[near] > least], near[values[near] == least]
        return np.append(larger, equal[np.argsort(self.rows[equal])[: count - len(larger)]])


def _merged(vectors: sparse.csr_matrix, inventory: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and the entry of every value that is added up, by row."""
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    entries = vectors.indices.astype(np.int64)
    is_pair = entries < inventory**2
    unit = rows * inventory + np.where(is_pair, entries % inventory, entries - inventory**2)  # the last of each n-gram
    # Of the pairs in a row that end with the same unit, one stands for the unit too.
    pairs = np.flatnonzero(is_pair)
    merged_units, where = np.unique(unit[pairs], return_index=True)
    entries[pairs[where]] += vectors.shape[1]
    kept = is_pair | ~np.isin(unit, merged_units)
    return rows[kept], entries[kept]


# Two bytes an entry for an inventory of phonemes or letters; more for a larger one.
@compiled(
    *(f"void(f4[::1], i8[::1], {entry}[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1])" for entry in ("u2", "u4"))
)
def _add_up(
    values: np.ndarray,
    ends: np.ndarray,
    entries: np.ndarray,
    counts: np.ndarray,
    sums: np.ndarray,
    means: np.ndarray,
    most_sum: np.ndarray,
    most_mean: np.ndarray,
) -> None:
    for block in range(len(ends) - 1):
        a = b = c = d = e = f = g = h = np.float32(0)
        for entry in range(ends[block], ends[block + 1], 8):
            a += values[entries[entry]]
            b += values[entries[entry + 1]]
            c += values[entries[entry + 2]]
            d += values[entries[entry + 3]]
            e += values[entries[entry + 4]]
            f += values[entries[entry + 5]]
            g += values[entries[entry + 6]]
            h += values[entries[entry + 7]]
        row = 8 * block
        sums[row], sums[row + 1], sums[row + 2], sums[row + 3] = a, b, c, d
        sums[row + 4], sums[row + 5], sums[row + 6], sums[row + 7] = e, f, g, h
        best = best_mean = np.float32(-np.inf)
        for lane in range(row, row + 8):
            means[lane] = sums[lane] / counts[lane]
            best, best_mean = max(best, sums[lane]), max(best_mean, means[lane])
        most_sum[block], most_mean[block] = best, best_mean
