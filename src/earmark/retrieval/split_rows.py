"""Rows of a split, and the glossary's surfaces, as training and evaluation read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from earmark.artifacts import SPLITS, read_table
from earmark.errors import InputError
from earmark.files import read_json
from earmark.text import normalise


@dataclass(frozen=True)
class SplitRow:
    """One chunk of a split."""

    chunk_id: str
    speaker_id: str
    term: str | None  # the surface heard; None for a no-term chunk
    main_term: str | None
    other_terms: tuple[str, ...]  # further main terms heard
    seen_term: bool | None  # whether the main term is heard in a kept training chunk; None for a no-term chunk
    text: str  # the words inside the chunk
    duration_s: float

    @property
    def has_term(self) -> bool:
        return self.main_term is not None

    @property
    def spoken_terms(self) -> frozenset[str]:
        """All main terms heard in the chunk."""
        return frozenset(self.other_terms if self.main_term is None else (self.main_term, *self.other_terms))


def read_split(path: Path) -> list[SplitRow]:
    """The rows of `splits/{split}.parquet` (schema SPLITS). InputError if a row contradicts itself."""
    columns = [
        "chunk_id", "speaker_id", "term", "main_term", "has_term", "other_terms", "seen_term", "text", "duration_s",
    ]  # fmt: skip
    table = read_table(path)
    if lost := set(columns) - set(table.column_names):
        raise InputError(f"{path}: lacks the columns {sorted(lost)}; it is no split table ({SPLITS.names})")
    rows = []
    for row in table.select(columns).to_pylist():
        if row["has_term"] != (row["main_term"] is not None) or row["has_term"] != (row["term"] is not None):
            raise InputError(f"{path}: chunk {row['chunk_id']}: has_term, term and main_term contradict one another")
        rows.append(
            SplitRow(
                row["chunk_id"],
                row["speaker_id"],
                row["term"],
                row["main_term"],
                tuple(row["other_terms"] or ()),
                row["seen_term"],
                row["text"] or "",
                row["duration_s"],
            )
        )
    return rows


def read_surfaces(glossary: Path, alt2main: Path) -> dict[str, str]:
    """Every surface of the glossary -> its main term, main terms first, each group in file order.

    InputError if a key is not normalised, or an alias names a main term that the glossary lacks.
    """
    main_terms, aliases = read_json(glossary), read_json(alt2main)
    surfaces = {term: term for term in main_terms}
    for alias, main_term in aliases.items():
        if main_term not in main_terms:
            raise InputError(f"{alt2main}: {alias!r} stands for {main_term!r}, which {glossary} does not hold")
        surfaces.setdefault(alias, main_term)
    for surface in surfaces:
        if not surface or surface != normalise(surface):
            raise InputError(f"{glossary}: {surface!r} is not a normalised surface; run the glossary stage")
    if not surfaces:
        raise InputError(f"{glossary}: holds no term; there is nothing to retrieve")
    return surfaces
