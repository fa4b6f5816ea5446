"""Answers in words against the terms that were spoken: recall, precision and rejection, each from plain sets.

For every way that says terms rather than ranks them. A chunk's own main term is to be said; other terms heard in it are
right when they are said, and no miss when they are not, as where terms are ranked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from earmark.mentions import MentionFinder
from earmark.text import normalise, readable, words

NO_TERM = "none"  # what an answer says where no term is spoken
_GROUPS = ("all", "seen", "unseen")
_COMMA = re.compile(r"(?<!\d),|,(?!\d)")  # not that of 1,000


@dataclass(frozen=True)
class SaidTerms:
    """What an answer says: main terms, what is no glossary term (normalised), and whether it rejects the chunk."""

    terms: frozenset[str]
    no_terms: frozenset[str] = frozenset()
    rejected: bool = False


@dataclass(frozen=True)
class Outcome:
    """A chunk and what was said about it."""

    main_term: str | None  # None for a no-term chunk
    spoken: frozenset[str]  # all main terms heard in it
    seen: bool | None  # whether the main term is heard in training; None for a no-term chunk
    said: SaidTerms
    found: bool  # whether the main term counts as found


def spelled_terms(surfaces: Mapping[str, str], display: Mapping[str, str]) -> dict[str, str]:
    """Every spelling that counts as a main term: the display forms that answers are taught, then `surfaces`.

    `display`: main term -> display form. Where two main terms show the same form, it stands for the one of that name,
    else the first.
    """
    spelled: dict[str, str] = {}
    for main_term, form in display.items():
        key = normalise(form)
        if key and (key not in spelled or key == main_term):
            spelled[key] = main_term
    return {**surfaces, **spelled}


class ListedTerms:
    """Reads an answer that lists terms, separated by commas.

    `spelled`: normalised spelling -> main term; `display`: main term -> display form, some of which may hold commas.
    """

    def __init__(self, spelled: Mapping[str, str], display: Mapping[str, str]):
        self._spelled = spelled
        self._with_commas = {normalise(form) for form in display.values() if _COMMA.search(form)}

    def __call__(self, answer: str) -> SaidTerms:
        """What is no spelling, `none` among terms too, is no glossary term.

        The chunk is rejected where the answer says `none` and nothing else; an empty answer rejects nothing.
        """
        pieces = [piece for part in _COMMA.split(answer) if (piece := normalise(part))]
        if pieces and set(pieces) == {NO_TERM}:
            return SaidTerms(frozenset(), rejected=True)
        terms, others, start = set(), set(), 0
        while start < len(pieces):
            runs = {end: " ".join(pieces[start:end]) for end in range(start + 1, len(pieces) + 1)}
            end = max((end for end, run in runs.items() if run in self._with_commas), default=start + 1)
            piece = runs[end]
            if main_term := self._spelled.get(piece):
                terms.add(main_term)
            else:
                others.add(piece)
            start = end
        return SaidTerms(frozenset(terms), frozenset(others))


class TranscribedTerms:
    """Finds terms in an answer that is a transcript: whole words, exactly, the longest of what overlaps."""

    def __init__(self, spelled: Mapping[str, str]):
        self._finder = MentionFinder(dict(spelled))

    def __call__(self, answer: str) -> SaidTerms:
        """A transcript without a glossary term rejects its chunk."""
        terms = frozenset(mention.main_term for mention in self._finder.find(words(answer)))
        return SaidTerms(terms, rejected=not terms)


def answer_figures(outcomes: Sequence[Outcome], training_terms: Collection[str]) -> dict[str, Any]:
    """Recall, precision and rejection over chunks; `training_terms` are heard in training.

    recall: of the term chunks, the share whose main term is found, in all and by whether it is heard in training.
    precision: of all that was said about any chunk (a term once a chunk), the share that is spoken there; what is no
    glossary term counts in `all` alone. rejected_no_term: of the no-term chunks, the share that is rejected;
    false_rejection: of the term chunks. exact: the share of chunks about which all spoken terms are said, or rejection
    where none is, and nothing else. A share of nothing is null.
    """
    term_chunks = [outcome for outcome in outcomes if outcome.main_term is not None]
    no_term = [outcome for outcome in outcomes if outcome.main_term is None]
    said = [(term, term in outcome.spoken) for outcome in outcomes for term in outcome.said.terms]
    others = sum(len(outcome.said.no_terms) for outcome in outcomes)
    recall, precision = {}, {}
    for group in _GROUPS:
        chunks = [outcome for outcome in term_chunks if group == "all" or outcome.seen == (group == "seen")]
        recall[group] = _share(sum(outcome.found for outcome in chunks), len(chunks), "found")
        right = [is_right for term, is_right in said if group == "all" or (term in training_terms) == (group == "seen")]
        precision[group] = _share(sum(right), len(right) + (others if group == "all" else 0), "right")
    return {
        "n_term": len(term_chunks),
        "n_no_term": len(no_term),
        "recall": recall,
        "precision": {**precision, "no_glossary_term": others},
        "rejected_no_term": _ratio(sum(outcome.said.rejected for outcome in no_term), len(no_term)),
        "false_rejection": _ratio(sum(outcome.said.rejected for outcome in term_chunks), len(term_chunks)),
        "exact": _ratio(sum(map(_is_exact, outcomes)), len(outcomes)),
    }


def transcript_figures(references: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """Word and character error rate of answers as transcripts, over all chunks together; both sides normalised.

    {n, words, wer, cer}. References hold words. Each character of Chinese and Japanese is a word; blanks between them
    are no characters.
    """
    if not references:
        return {"n": 0, "words": 0, "wer": None, "cer": None}
    wanted, heard = list(map(normalise, references)), list(map(normalise, answers))
    return {
        "n": len(wanted),
        "words": sum(len(text.split()) for text in wanted),
        "wer": float(jiwer.wer(wanted, heard)),
        "cer": float(jiwer.cer(list(map(readable, wanted)), list(map(readable, heard)))),
    }


def _is_exact(outcome: Outcome) -> bool:
    said = outcome.said
    return said.terms == outcome.spoken and not said.no_terms and said.rejected == (not outcome.spoken)


def _share(count: int, n: int, name: str) -> dict[str, Any]:
    return {"n": n, name: count, "value": _ratio(count, n)}


def _ratio(count: int, n: int) -> float | None:
    return count / n if n else None
