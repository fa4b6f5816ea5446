"""What a retriever ranks first for a chunk, as the prompt of a speech language model says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earmark.artifacts import iterate_rows
from earmark.errors import InputError

TERMS = "{terms}"  # where the hint prompt says the terms
_COLUMNS = ["chunk_id", "top_terms"]


class Hints:
    """The `count` terms that stand in a chunk's prompt, and how often the spoken one is among them.

    `top_terms[chunk_id]` are main terms, best first; `prompt` is a text with TERMS in it. InputError if it has none.
    """

    def __init__(self, top_terms: Mapping[str, Sequence[str]], count: int, prompt: str):
        if TERMS not in prompt:
            raise InputError(f"the hint prompt {prompt!r} lacks {TERMS}, the place of the terms; write it in")
        self.top_terms, self.count, self.prompt = top_terms, count, prompt
        self._without = 0
        self._chunks: Counter[str] = Counter()
        self._found: Counter[str] = Counter()

    def added_to(self, prompt: str, row: Mapping[str, Any], display: Mapping[str, str]) -> str:
        """The prompt of a chunk (a row of SPLITS): `prompt`, a space and the hints, in display form.

        A chunk that the retriever could not rank has `prompt` alone, and counts as one without hints.
        """
        terms = self.top_terms.get(row["chunk_id"], ())
        if row["has_term"]:
            for group in ("all", "seen" if row["seen_term"] else "unseen"):
                self._chunks[group] += 1
                self._found[group] += row["main_term"] in terms
        if not terms:
            self._without += 1
            return prompt
        # A term that was added to the index is none of the glossary's.
        listed = ", ".join(display.get(term, term) for term in terms)
        return f"{prompt} {self.prompt.replace(TERMS, listed)}"

    def counts(self) -> dict[str, Any]:
        """{count, without_hints, spoken_among_them: {all, seen, unseen: {n, found, value}}}, of chunks so far.

        `spoken_among_them`: of term chunks, those whose own term is a hint, which is the most that copying could reach.
        """
        return {
            "count": self.count,
            "without_hints": self._without,
            "spoken_among_them": {
                group: {"n": n, "found": self._found[group], "value": self._found[group] / n if n else None}
                for group in ("all", "seen", "unseen")
                for n in [self._chunks[group]]
            },
        }


def read_hints(rankings: Iterable[Path], count: int, prompt: str) -> Hints:
    """The first `count` terms of each chunk in tables of RANKINGS. InputError if a chunk is in two."""
    top_terms: dict[str, list[str]] = {}
    for path in rankings:
        for row in iterate_rows(path, 4096, _COLUMNS):
            if row["chunk_id"] in top_terms:
                raise InputError(f"{path}: chunk {row['chunk_id']} is ranked twice; run the stage folds again")
            top_terms[row["chunk_id"]] = row["top_terms"][:count]
    return Hints(top_terms, count, prompt)
