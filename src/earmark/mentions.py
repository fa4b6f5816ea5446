"""Finding glossary surfaces in aligned words: all surfaces at once, the longest match wins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_END = ""  # the key under which a trie node holds its surface; no word is empty


@dataclass(frozen=True)
class Mention:
    """`surface` spans words[first:last]."""

    surface: str
    main_term: str
    first: int
    last: int


class MentionFinder:
    """A trie of words over all surfaces. `surfaces`: surface -> main term, both normalised.

    `ambiguous`: further ones, which occur but make no mention. `dropped`: aliases that are no surface (any more), but
    name a main term all the same.
    """

    def __init__(
        self,
        surfaces: dict[str, str],
        ambiguous: dict[str, str] | None = None,
        dropped: dict[str, str] | None = None,
    ):
        self._ambiguous = ambiguous or {}
        self._dropped = dropped or {}
        self._main_term = surfaces | self._ambiguous | self._dropped
        self._root: dict[str, Any] = {}
        for surface in self._main_term:
            node = self._root
            for word in surface.split():
                node = node.setdefault(word, {})
            node[_END] = surface

    def find(self, words: Sequence[str]) -> list[Mention]:
        """Every mention in `words`, in order. Of two that overlap the longer (in words) stays, then the first."""
        return self.choose(self.find_all(words))

    def choose(self, occurrences: Iterable[Mention]) -> list[Mention]:
        """The mentions among all occurrences of a segment."""
        taken: set[int] = set()
        chosen = []
        for mention in sorted(occurrences, key=lambda m: (m.first - m.last, m.first)):
            places = range(mention.first, mention.last)
            if mention.surface not in self._ambiguous and taken.isdisjoint(places):
                taken.update(places)
                chosen.append(mention)
        return sorted(chosen, key=lambda m: m.first)

    def find_all(self, words: Sequence[str]) -> list[Mention]:
        """Every occurrence of every surface, overlapping and nested ones too."""
        return self.surfaces_of(self.find_names(words))

    def surfaces_of(self, names: Iterable[Mention]) -> list[Mention]:
        """Those of `find_names` that are no dropped aliases."""
        return [mention for mention in names if mention.surface not in self._dropped]

    def find_names(self, words: Sequence[str]) -> Iterator[Mention]:
        """Every occurrence of every surface and of every dropped alias: whatever names a main term."""
        for first in range(len(words)):
            node = self._root
            for last in range(first, len(words)):
                if (next_node := node.get(words[last])) is None:
                    break
                node = next_node
                if surface := node.get(_END):
                    yield Mention(surface, self._main_term[surface], first, last + 1)
