"""Decide what each voice says: terms dealt evenly over the voices of a split, carriers filled, texts checked."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

SHARE_NO_TERM = 0.20
SHARE_TWO_TERMS = 0.10
# An alias at every third mention of a term; at every second where a term has few mentions.
ALIAS_EVERY = {"train": 3, "dev": 2, "test": 2}
UNSEEN_WEIGHT = 2
PLAIN_AT_MOST = 2
FILLER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Glossary:
    """The demo glossary. `terms`: main term -> its entry in glossary.yaml; `main_of`: surface -> main term."""

    terms: dict[str, dict]
    unseen: frozenset[str]
    main_of: dict[str, str]

    @classmethod
    def from_yaml(cls, loaded: dict) -> Glossary:
        """Build from glossary.yaml; an alias that is also another surface is an error."""
        main_of: dict[str, str] = {}
        for phrase, entry in loaded["terms"].items():
            for surface in [phrase, *entry.get("aliases", [])]:
                if surface in main_of:
                    raise ValueError(f"glossary.yaml: {surface!r} belongs to {main_of[surface]!r} and to {phrase!r}")
                main_of[surface] = phrase
        return cls(loaded["terms"], frozenset(loaded["unseen"]), main_of)

    def find(self, text: str) -> list[tuple[int, str]]:
        """Surfaces in a text as (index of the first word, surface), the longest at each place."""
        words, found, place = text.split(), [], 0
        longest = max(len(surface.split()) for surface in self.main_of)
        while place < len(words):
            for size in range(longest, 0, -1):
                surface = " ".join(words[place : place + size])
                if surface in self.main_of and place + size <= len(words):
                    found.append((place, surface))
                    place += size
                    break
            else:
                place += 1
        return found


@dataclass(frozen=True)
class Plan:
    """One utterance to speak. `kinds` and `surfaces` are empty where no term is spoken."""

    kinds: tuple[str, ...]
    surfaces: tuple[str, ...]
    carrier: str
    text: str


class TextPlanner:
    """Plans the utterances of one split. Its carriers are the split's own; no text is used twice."""

    def __init__(self, split: str, glossary: Glossary, sentences: dict, seed: int):
        self.split = split
        self.glossary = glossary
        self.carriers = sentences[split]
        self.fillers = sentences["fillers"]
        self.everyday = sentences["everyday"]
        self.rng = np.random.default_rng([seed, *split.encode()])
        self.uses: Counter[str] = Counter()
        self.mentions: Counter[str] = Counter()
        self.mentions_by_voice: Counter[tuple[str, str]] = Counter()
        self.alias_every = ALIAS_EVERY[split]
        self.alias_turn = {phrase: int(self.rng.integers(self.alias_every)) for phrase in glossary.terms}
        self.texts: set[str] = set()

    def plan(self, utterances: dict[str, int]) -> dict[str, list[Plan]]:
        """voice -> its utterances, in the order to speak them."""
        plans: dict[str, list[Plan]] = {voice: [] for voice in utterances}
        slots = []
        for voice, count in utterances.items():
            no_term, two_terms = round(count * SHARE_NO_TERM), round(count * SHARE_TWO_TERMS)
            kinds = ["two"] * two_terms + ["none"] * no_term + ["one"] * (count - no_term - two_terms)
            slots += [(kind, voice) for kind in kinds]
        self.rng.shuffle(slots)
        # Pairs first: single mentions then even out how often each term is spoken.
        for kind, voice in sorted(slots, key=lambda slot: slot[0] != "two"):
            make = {"one": self._one, "two": self._two, "none": self._none}[kind]
            plans[voice].append(make(str(voice)))
        for voice in plans:
            self.rng.shuffle(plans[voice])
        return plans

    def again(self, plan: Plan) -> Plan:
        """The same terms in other words, for a text that did not come out right when spoken."""
        if not plan.surfaces:
            return self._none("")
        if len(plan.surfaces) == 1:
            return self._fill(replace(plan, carrier=self._least_used(self.carriers[plan.kinds[0]])))
        return self._fill(plan)

    def _one(self, voice: str) -> Plan:
        surface, kind = self._deal(voice, None)
        carrier = self._least_used(self.carriers[kind])
        return self._fill(Plan((kind,), (surface,), carrier, ""))

    def _two(self, voice: str) -> Plan:
        carrier = self._least_used(self.carriers["two"])
        kinds = tuple(name for name in FILLER.findall(carrier) if name in self.everyday)
        surfaces = tuple(self._deal(voice, kind)[0] for kind in kinds)
        return self._fill(Plan(kinds, surfaces, carrier, ""))

    def _none(self, voice: str) -> Plan:
        plain = [sentence for sentence in self.carriers["none"] if self.uses[sentence] < PLAIN_AT_MOST]
        if plain and self.rng.random() < 0.6:
            sentence = self._least_used(plain)
            self.uses[sentence] += 1
            return Plan((), (), sentence, self._checked(sentence, ()))
        kind = str(self.rng.choice(sorted(self.everyday)))
        carrier = self._least_used(self.carriers[kind])
        return self._fill(Plan((), (), carrier.replace("{t}", "{" + kind + "}"), ""))

    def _deal(self, voice: str, kind: str | None) -> tuple[str, str]:
        """The surface to speak next and its kind: of the term spoken least, in this voice least."""
        allowed = [
            phrase
            for phrase, entry in self.glossary.terms.items()
            if kind in (None, entry["kind"]) and (self.split == "test" or phrase not in self.glossary.unseen)
        ]

        def order(phrase: str) -> tuple[float, int, float]:
            weight = UNSEEN_WEIGHT if phrase in self.glossary.unseen else 1
            return self.mentions[phrase] // weight, self.mentions_by_voice[voice, phrase], self.rng.random()

        phrase = min(allowed, key=order)
        entry = self.glossary.terms[phrase]
        aliases = entry.get("aliases", [])
        turn = self.mentions[phrase] + self.alias_turn[phrase]
        surface = phrase
        if aliases and turn % self.alias_every == 0:
            surface = aliases[(turn // self.alias_every) % len(aliases)]
        self.mentions[phrase] += 1
        self.mentions_by_voice[voice, phrase] += 1
        return surface, entry["kind"]

    def _least_used(self, carriers: list[str]) -> str:
        return min(carriers, key=lambda carrier: (self.uses[carrier], self.rng.random()))

    def _fill(self, plan: Plan) -> Plan:
        """Fill the carrier's places until the text is new and has the intended mentions and no other."""
        self.uses[plan.carrier] += 1
        for _ in range(100):
            surfaces = list(plan.surfaces)
            taken: set[str] = set()

            def fill(match: re.Match, surfaces: list[str] = surfaces, taken: set[str] = taken) -> str:
                name = match.group(1)
                if name in self.fillers or not surfaces:
                    words = [word for word in (self.fillers | self.everyday)[name] if word not in taken]
                    word = str(self.rng.choice(words))
                    taken.add(word)
                    return word
                return self._with_article(surfaces.pop(0))

            text = FILLER.sub(fill, plan.carrier)
            if text not in self.texts:
                return replace(plan, text=self._checked(text, plan.surfaces))
        raise ValueError(f"no new text for {plan.surfaces} in {plan.carrier!r}")

    def _with_article(self, surface: str) -> str:
        entry = self.glossary.terms[self.glossary.main_of[surface]]
        article = entry.get("the") if surface in self.glossary.terms else entry.get("the_alias")
        return f"the {surface}" if article else surface

    def _checked(self, text: str, surfaces: tuple[str, ...]) -> str:
        found = tuple(surface for _, surface in self.glossary.find(text))
        if found != surfaces:
            raise ValueError(f"{text!r} has the mentions {found}, not {surfaces}")
        self.texts.add(text)
        return text
