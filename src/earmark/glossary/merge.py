"""Merging term and alias files into one glossary, deciding every conflict by a stated rule."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earmark.artifacts import read_json, write_json, write_jsonl
from earmark.errors import InputError
from earmark.text import normalise


@dataclass
class Glossary:
    """`terms`: main term -> {term, aliases, ...}; `alt2main`: alias -> main term; all keys normalised."""

    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    alt2main: dict[str, str] = field(default_factory=dict)
    conflicts: list[dict[str, str]] = field(default_factory=list)

    def conflict(self, kind: str, surface: str, source: Path, decision: str) -> None:
        self.conflicts.append({"kind": kind, "surface": surface, "source": str(source), "decision": decision})


def merge_glossary(term_files: list[Path], alias_files: list[Path], output_folder: Path) -> None:
    """Write glossary.json, alt2main.json and conflicts.jsonl.

    Term files hold {phrase: {term, short_description?, aliases?, ...}}, alias files {alias: phrase}. Rules: a later
    file overrides an earlier one, and an alias file the `aliases` inside any entry; a chain of aliases is followed to
    its main term; a cycle, an alias whose main term is missing and a surface that normalises to nothing are dropped;
    a main term is never an alias of another. InputError if no term is left.
    """
    glossary = Glossary()
    sources: dict[str, Path] = {}
    for path in term_files:
        _read_terms(path, glossary, sources)
    aliases: dict[str, tuple[str, Path]] = {}
    # Once all term files are read, so that an entry that was replaced leaves no aliases behind.
    for main, entry in glossary.terms.items():
        for alias_text in entry.get("aliases", []):
            _add_alias(alias_text, main, sources[main], aliases, glossary)
    for path in alias_files:
        _read_aliases(path, aliases, glossary)
    _resolve(aliases, glossary)
    if not glossary.terms:
        raise InputError(f"{', '.join(map(str, term_files))}: no usable term in the glossary; set glossary.terms")
    by_main: dict[str, list[str]] = defaultdict(list)
    for alias, main in glossary.alt2main.items():
        by_main[main].append(alias)
    write_json(
        output_folder / "glossary.json",
        {main: {**entry, "aliases": sorted(by_main[main])} for main, entry in sorted(glossary.terms.items())},
    )
    write_json(output_folder / "alt2main.json", dict(sorted(glossary.alt2main.items())))
    write_jsonl(output_folder / "conflicts.jsonl", glossary.conflicts)
    logging.info(
        "%d main terms, %d aliases, %d conflicts", len(glossary.terms), len(glossary.alt2main), len(glossary.conflicts)
    )


def _entries(path: Path, kind: type, what: str) -> dict[str, Any]:
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected a JSON object, {what}; found a {type(entries).__name__}")
    for key, value in entries.items():
        if not isinstance(value, kind):
            raise InputError(f"{path}: the entry {key[:80]!r} holds a {type(value).__name__}; expected {what}")
    return entries


def _read_terms(path: Path, glossary: Glossary, sources: dict[str, Path]) -> None:
    """Add the file's entries to `glossary.terms`, and the file to `sources` as where each main term is from."""
    for phrase, entry in _entries(path, dict, "phrase to {term, short_description, ...}").items():
        main = normalise(phrase)
        if not main:
            glossary.conflict("empty_surface", phrase, path, "dropped: it normalises to nothing")
            continue
        if main in glossary.terms:
            glossary.conflict("duplicate_term", main, path, "the later entry replaces the earlier one")
            del glossary.terms[main]  # so that the new one comes last: where two entries list an alias, the later wins
        shown = entry.get("term", phrase)
        if not isinstance(shown, str) or not shown.strip():
            raise InputError(f"{path}: the term of {phrase[:80]!r} is {shown!r}; expected the text to show for it")
        listed = entry.get("aliases", [])
        if not isinstance(listed, list) or not all(isinstance(alias, str) for alias in listed):
            raise InputError(f"{path}: the aliases of {phrase[:80]!r} are {listed!r:.80}; expected a list of texts")
        glossary.terms[main] = {**entry, "term": shown}
        sources[main] = path


def _read_aliases(path: Path, aliases: dict[str, tuple[str, Path]], glossary: Glossary) -> None:
    for alias_text, main_text in _entries(path, str, "alias to phrase").items():
        _add_alias(alias_text, main_text, path, aliases, glossary)


def _add_alias(
    alias_text: str, main_text: str, path: Path, aliases: dict[str, tuple[str, Path]], glossary: Glossary
) -> None:
    alias, main = normalise(alias_text), normalise(main_text)
    if not alias or not main:
        glossary.conflict("empty_surface", alias_text, path, "dropped: it normalises to nothing")
        return
    if alias in aliases and aliases[alias][0] != main:
        decision = f"alias of {main!r}, the later entry, not of {aliases[alias][0]!r}"
        glossary.conflict("alias_of_several", alias, path, decision)
    aliases[alias] = (main, path)


def _resolve(aliases: dict[str, tuple[str, Path]], glossary: Glossary) -> None:
    for alias, (target, path) in aliases.items():
        if alias in glossary.terms:
            if alias != target:
                glossary.conflict("alias_is_main_term", alias, path, f"stays a main term, no alias of {target!r}")
            continue
        seen = [alias]
        while target not in glossary.terms and target in aliases and target not in seen:
            seen.append(target)
            target = aliases[target][0]
        if target in glossary.terms:
            glossary.alt2main[alias] = target
        elif target in seen:
            glossary.conflict("alias_cycle", alias, path, f"dropped: {' -> '.join([*seen, target])}")
        else:
            glossary.conflict("missing_main_term", alias, path, f"dropped: {target!r} is not in the glossary")
