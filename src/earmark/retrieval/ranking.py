"""Ranking a glossary's main terms by their similarity to a chunk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TermColumns:
    """Which main term each surface stands for.

    `terms` are distinct, `column_of` says where each stands in them, and `term_of_surface`[surfaces] indexes them.
    `by_term`[surfaces] are the surfaces in the order of their terms, of which term i begins at `begins`[i].
    """

    terms: tuple[str, ...]
    column_of: dict[str, int]
    term_of_surface: np.ndarray
    by_term: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, main_terms: Sequence[str]) -> TermColumns:
        """`main_terms[i]` is the main term of surface i."""
        terms = tuple(dict.fromkeys(main_terms))
        column_of = {term: column for column, term in enumerate(terms)}
        term_of_surface = np.array([column_of[term] for term in main_terms])
        by_term = np.argsort(term_of_surface, kind="stable")
        begins = np.searchsorted(term_of_surface[by_term], np.arange(len(terms)))
        return cls(terms, column_of, term_of_surface, by_term, begins)


def term_scores(surface_scores: np.ndarray, columns: TermColumns) -> np.ndarray:
    """surface_scores[B, surfaces] -> scores[B, terms]: a main term scores as its best surface."""
    return np.maximum.reduceat(surface_scores[:, columns.by_term], columns.begins, axis=1).astype(np.float64)


def rank_of(scores: np.ndarray, columns: TermColumns, term: str, others: Collection[str]) -> int:
    """The rank, from 1, of `term` among one chunk's scores[terms].

    A term that is not among the columns ranks behind all that are. `others`, further terms spoken in the same chunk,
    are taken out first: they are neither right nor wrong. A tie counts against the term.
    """
    if (own := columns.column_of.get(term)) is None:
        return len(columns.terms) + 1
    ahead = ~(scores < scores[own])  # so NaN never makes a term first
    ahead[[own, *(columns.column_of[other] for other in others if other in columns.column_of)]] = False
    return 1 + int(ahead.sum())
