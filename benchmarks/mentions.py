"""Finding the mentions of a very large glossary: memory, and words a second of one core.

    .venv/bin/python benchmarks/mentions.py

The surfaces are made of words of PocketSphinx's dictionary: 5 % of one word, 45 % of two, 35 % of three, 15 % of four.
Half of their words are drawn evenly, half as often as they are spoken, so that many begin with common words. The text
has segments of twelve words, drawn as often as they are spoken (unigrams of PocketSphinx's language model), and in
every second segment two to four of them are a surface. Each figure is that of a process of its own.

The loops ask for every surface whether it is in a segment: by `in`, and by a regular expression with word boundaries,
made beforehand. They see a few segments (the latter a few of the surfaces too), from which their rate is extrapolated.
What `in` finds must be what the finder finds.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pocketsphinx
from corpus_scale import measured

from earmark.glossary.ambiguity import word_share
from earmark.mentions import MentionFinder

SEGMENT_WORDS = 12
IN_SEGMENTS, REGEX_SEGMENTS, REGEX_SURFACES = 20, 20, 5_000


def dictionary() -> tuple[list[str], np.ndarray]:
    """The words and how large a share of running speech each is."""
    path = Path(pocketsphinx.get_model_path()) / "en-us/cmudict-en-us.dict"
    lines = path.read_text(encoding="utf-8").splitlines()
    words = sorted({line.split()[0] for line in lines if "(" not in line.split()[0]})
    shares = np.array([word_share(word, "en") for word in words])
    return words, shares / shares.sum()


def surfaces_of(count: int, words: list[str], shares: np.ndarray) -> dict[str, str]:
    random = np.random.default_rng(1)
    surfaces: dict[str, str] = {}
    while len(surfaces) < count:
        missing = count - len(surfaces)
        lengths = random.choice([1, 2, 3, 4], missing, p=[0.05, 0.45, 0.35, 0.15])
        evenly = random.integers(0, len(words), (missing, 4))
        spoken = random.choice(len(words), (missing, 4), p=shares)
        drawn = np.where(random.random((missing, 4)) < 0.5, evenly, spoken)
        drawn[lengths == 1] = evenly[lengths == 1]
        for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True):
            surface = " ".join([words[place] for place in row[:length]])
            surfaces[surface] = surface
    return surfaces


def segments_of(count: int, words: list[str], shares: np.ndarray, surfaces: dict[str, str]) -> Iterator[list[str]]:
    random = np.random.default_rng(2)
    longer = [surface for surface in surfaces if " " in surface]
    spoken = random.choice(len(words), (count, SEGMENT_WORDS), p=shares)
    inserted = random.integers(0, len(longer), count)
    for number, row in enumerate(spoken.tolist()):
        segment = [words[place] for place in row]
        if number % 2:
            mention = longer[inserted[number]].split()
            segment[4 : 4 + len(mention)] = mention
        yield segment


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def find(count: int, segments: int) -> dict[str, Any]:
    words, shares = dictionary()
    surfaces = surfaces_of(count, words, shares)
    texts = list(segments_of(segments, words, shares, surfaces))
    before_mb = peak_mb()
    started = time.process_time()
    finder = MentionFinder(surfaces)
    build_s = time.process_time() - started
    started = time.process_time()
    mentions = sum(len(finder.find(text)) for text in texts)
    find_s = time.process_time() - started
    return {"before_mb": before_mb, "build_s": build_s, "find_s": find_s, "mentions": mentions}


def loops(count: int) -> dict[str, Any]:
    """Seconds that one segment takes, by `in` and by regular expressions."""
    words, shares = dictionary()
    surfaces = surfaces_of(count, words, shares)
    texts = list(segments_of(max(IN_SEGMENTS, REGEX_SEGMENTS), words, shares, surfaces))
    finder = MentionFinder(surfaces)
    started = time.process_time()
    found = []
    for text in texts[:IN_SEGMENTS]:
        padded = f" {' '.join(text)} "
        found.append({surface for surface in surfaces if f" {surface} " in padded})
    in_s = (time.process_time() - started) / IN_SEGMENTS
    if found != [{mention.surface for mention in finder.find_all(text)} for text in texts[:IN_SEGMENTS]]:
        raise SystemExit("the loop finds other surfaces")
    patterns = [re.compile(rf"\b{re.escape(surface)}\b") for surface in list(surfaces)[:REGEX_SURFACES]]
    started = time.process_time()
    for text in texts[:REGEX_SEGMENTS]:
        joined = " ".join(text)
        for pattern in patterns:
            pattern.search(joined)
    regex_s = (time.process_time() - started) / REGEX_SEGMENTS * count / len(patterns)
    return {"in_s": in_s, "regex_s": regex_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--segments", type=int, default=200_000)
    options = parser.parse_args()
    print(line("surfaces", "build s", "MB before", "peak MB", "mentions", "words/s", "`in`, w/s", "regex, w/s"))
    for count in options.surfaces:
        ours = measured(find, count, options.segments)
        theirs = measured(loops, count)
        rate = options.segments * SEGMENT_WORDS / ours["find_s"]
        cells = f"{ours['build_s']:.1f}", f"{ours['before_mb']:.0f}", f"{ours['peak_mb']:.0f}", ours["mentions"]
        loop_rates = (SEGMENT_WORDS / theirs["in_s"], SEGMENT_WORDS / theirs["regex_s"])
        print(line(f"{count:,}", *cells, f"{rate:,.0f}", *(f"{each:,.1f}" for each in loop_rates)), flush=True)


line = "{:<12}{:>9}{:>11}{:>9}{:>11}{:>11}{:>11}{:>12}".format


if __name__ == "__main__":
    main()
