"""Merging term and alias files into one glossary, deciding every conflict by a stated rule."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earmark.artifacts import write_json, write_jsonl
from earmark.errors import InputError
from earmark.glossary.ambiguity import AmbiguousAliases
from earmark.glossary.filters import NUMBER_AND_TIME_WORDS, STOP_WORDS, TermFilters
from earmark.glossary.sources import AliasEntry, TermEntry, read_aliases, read_list, read_terms
from earmark.text import is_unicode, normalise

_NOT_UNICODE = "it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
_LONGEST_CHAIN = 10  # of aliases that is written out


@dataclass
class Glossary:
    """What is merged so far; all surfaces are normalised.

    `terms`: main term -> {term, ...}. `aliases`: alias -> (target, source), the target a main term or another alias.
    """

    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, tuple[str, str]] = field(default_factory=dict)
    conflicts: list[dict[str, str]] = field(default_factory=list)

    def conflict(self, kind: str, surface: str, source: str, decision: str) -> None:
        shown = surface.encode("utf-8", "backslashreplace").decode()
        self.conflicts.append({"kind": kind, "surface": shown, "source": source, "decision": decision})


def merge_glossary(
    term_files: list[Path],
    alias_files: list[Path],
    output_folder: Path,
    *,
    blacklist: Path | None,
    filters: TermFilters,
    keep_ambiguous: bool,
    language: str,
) -> None:
    """Write glossary.json, alt2main.json, ambiguous_aliases.json, dropped_aliases.json and conflicts.jsonl.

    Each use of a rule is a line of conflicts.jsonl, {kind, surface, source, decision}:
    - duplicate_term: a later entry replaces an earlier one of the same phrase (case, width and punctuation aside).
    - diacritic_duplicate: main terms that differ in accents alone stay apart.
    - empty_surface: what normalises to nothing is dropped.
    - not_unicode: what holds half of a surrogate pair is dropped; a term with the aliases of its entry.
    - blacklisted, and the kinds of TermFilters: dropped; with a main term go its aliases (main_term_dropped). An alias
      dropped alone goes to dropped_aliases.json: no surface, but an unseen term is kept out of training under that
      name too. Stop words alone ("who") name nothing, and are not in it.
    - alias_of_several: the later entry wins. alias_is_main_term: it stays a main term.
    - alias_cycle, missing_main_term: an alias that leads to no main term is dropped.
    - ambiguous_alias: used with `keep_ambiguous`, else moved to ambiguous_aliases.json, where it makes no
      mention and keeps no-term chunks away. `language` (a code) says which words are common. Decided last: what was
      dropped makes nothing ambiguous.
    InputError if no term is left.
    """
    glossary = Glossary()
    for path in term_files:
        for term in read_terms(path):
            _add_term(term, glossary)
    # Once all term files are read, so that an entry that was replaced leaves no aliases behind.
    for main, entry in glossary.terms.items():
        for alias in entry.get("aliases", []):
            _add_alias(AliasEntry(alias, main, glossary.sources[main]), glossary)
    for path in alias_files:
        for alias in read_aliases(path):
            _add_alias(alias, glossary)
    alt2main = _resolve(glossary)
    unwanted = {normalise(line) for line in read_list(blacklist)} if blacklist else set()
    dropped = _drop_unwanted(glossary, alt2main, unwanted, filters)
    ambiguous = _find_ambiguous(glossary, alt2main, language, keep_ambiguous)
    _flag_diacritics(glossary)
    if not glossary.terms:
        raise InputError(f"{', '.join(map(str, term_files))}: no usable term in the glossary; set glossary.terms")
    by_main: dict[str, list[str]] = defaultdict(list)
    for surface, main in alt2main.items():
        by_main[main].append(surface)
    write_json(
        output_folder / "glossary.json",
        {main: {**entry, "aliases": sorted(by_main[main])} for main, entry in sorted(glossary.terms.items())},
    )
    write_json(output_folder / "alt2main.json", dict(sorted(alt2main.items())))
    write_json(output_folder / "ambiguous_aliases.json", dict(sorted(ambiguous.items())))
    write_json(output_folder / "dropped_aliases.json", dict(sorted(dropped.items())))
    write_jsonl(output_folder / "conflicts.jsonl", glossary.conflicts)
    kinds = Counter(row["kind"] for row in glossary.conflicts)
    logging.info("%d main terms, %d aliases; conflicts: %s", len(glossary.terms), len(alt2main), dict(kinds) or "none")


def _add_term(entry: TermEntry, glossary: Glossary) -> None:
    stated = {name: value for name, value in entry.fields.items() if name != "aliases"}
    if not is_unicode(json.dumps([entry.phrase, stated], ensure_ascii=False)):
        glossary.conflict("not_unicode", entry.phrase, entry.source, f"dropped, with its aliases: {_NOT_UNICODE}")
        return
    main = normalise(entry.phrase)
    if not main:
        glossary.conflict(
            "empty_surface", entry.phrase, entry.source, "dropped, with its aliases: it normalises to nothing"
        )
        return
    if main in glossary.terms:
        glossary.conflict("duplicate_term", main, entry.source, "the later entry replaces the earlier one")
        del glossary.terms[main]  # so that the new one comes last: where two entries list an alias, the later wins
    glossary.terms[main] = {**entry.fields, "term": entry.fields.get("term", entry.phrase).strip()}
    glossary.sources[main] = entry.source


def _add_alias(entry: AliasEntry, glossary: Glossary) -> None:
    if not is_unicode(entry.alias + entry.phrase):
        glossary.conflict("not_unicode", entry.alias, entry.source, f"dropped: {_NOT_UNICODE}")
        return
    alias, target = normalise(entry.alias), normalise(entry.phrase)
    if not alias or not target:
        glossary.conflict("empty_surface", entry.alias, entry.source, "dropped: it normalises to nothing")
        return
    if alias in glossary.aliases and glossary.aliases[alias][0] != target:
        decision = f"alias of {target!r}, the later entry, not of {glossary.aliases[alias][0]!r}"
        glossary.conflict("alias_of_several", alias, entry.source, decision)
    glossary.aliases[alias] = (target, entry.source)


def _drop_unwanted(
    glossary: Glossary, alt2main: dict[str, str], blacklist: set[str], filters: TermFilters
) -> dict[str, str]:
    """Take what is blacklisted or filtered out of the terms and out of `alt2main`.

    Returns the aliases dropped that still name a term: dropped alias -> main term.
    """

    def problem(surface: str) -> tuple[str, str] | None:
        return ("blacklisted", "it is on the blacklist") if surface in blacklist else filters.problem(surface)

    for main in list(glossary.terms):
        if found := problem(main):
            glossary.conflict(found[0], main, glossary.sources[main], f"dropped, with its aliases: {found[1]}")
            del glossary.terms[main]
    dropped: dict[str, str] = {}
    for alias, main in list(alt2main.items()):
        source = glossary.aliases[alias][1]
        if main not in glossary.terms:
            glossary.conflict("main_term_dropped", alias, source, f"dropped with {main!r}")
            del alt2main[alias]
        elif found := problem(alias):
            glossary.conflict(found[0], alias, source, f"dropped: {found[1]}")
            del alt2main[alias]
            if not (STOP_WORDS | NUMBER_AND_TIME_WORDS).issuperset(alias.split()):
                dropped[alias] = main
    return dropped


def _find_ambiguous(
    glossary: Glossary, alt2main: dict[str, str], language: str, keep_ambiguous: bool
) -> dict[str, str]:
    """Report ambiguous aliases; take them out of `alt2main` and return them, unless they are kept."""
    aliases = AmbiguousAliases(glossary.terms, alt2main, language)
    ambiguous: dict[str, str] = {}
    for alias, main in list(alt2main.items()):
        if why := aliases.problem(alias, main):
            source = glossary.aliases[alias][1]
            if keep_ambiguous:
                glossary.conflict("ambiguous_alias", alias, source, f"kept, as glossary.ambiguous_aliases asks: {why}")
            else:
                ambiguous[alias] = alt2main.pop(alias)
                glossary.conflict("ambiguous_alias", alias, source, f"not used alone: {why}")
    return ambiguous


def _flag_diacritics(glossary: Glossary) -> None:
    first: dict[str, str] = {}
    for main in glossary.terms:
        other = first.setdefault(_without_accents(main), main)
        if other != main:
            decision = f"stays apart from {other!r}; if they are one term, list one as an alias of the other"
            glossary.conflict("diacritic_duplicate", main, glossary.sources[main], decision)


def _without_accents(surface: str) -> str:
    """`surface` without the accents of Latin letters; the marks of other scripts make other letters and stay."""
    result: list[str] = []
    for character in unicodedata.normalize("NFD", surface):
        if "\u0300" <= character <= "\u036f" and result and "a" <= result[-1] <= "z":
            continue
        result.append(character)
    return "".join(result)


def _resolve(glossary: Glossary) -> dict[str, str]:
    """Follow every alias to its main term: alias -> main term."""
    alt2main: dict[str, str] = {}
    for alias, (first_target, source) in glossary.aliases.items():
        if alias in glossary.terms:
            if alias != first_target:
                decision = f"stays a main term, no alias of {first_target!r}"
                glossary.conflict("alias_is_main_term", alias, source, decision)
            continue
        seen, target = {alias: None}, first_target  # in the order of the chain
        while target not in glossary.terms and target in glossary.aliases and target not in seen:
            seen[target] = None
            target = glossary.aliases[target][0]
        if target in glossary.terms:
            alt2main[alias] = target
        else:
            glossary.conflict(*_lost(alias, source, list(seen), target))
    return alt2main


def _lost(alias: str, source: str, seen: list[str], target: str) -> tuple[str, str, str, str]:
    """The conflict of an alias that leads to no main term."""
    if target in seen:
        # Each alias of a long cycle is a line of its own: written out in all of them, it would fill the disk.
        chain = seen if len(seen) <= _LONGEST_CHAIN else [*seen[:_LONGEST_CHAIN], f"({len(seen)} aliases in all)"]
        return "alias_cycle", alias, source, f"dropped: {' -> '.join([*chain, target])}"
    return "missing_main_term", alias, source, f"dropped: {target!r} is not in the glossary"
