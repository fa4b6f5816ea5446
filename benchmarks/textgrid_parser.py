"""How fast TextGrids are read, against praatio's `openTextgrid(path, includeEmptyIntervals=True)`.

    .venv/bin/python benchmarks/textgrid_parser.py

The files: utterances of the demo, joined to some 12 s (the mean of LibriSpeech's) and to some 10 minutes (a recording),
with their known word times and phones made up by dividing each word evenly: tiers `words` and `phones`, silence "", as
MFA writes them, long (its default) and short. The readers take turns within one process; the best of the rounds
counts, in CPU time. That both read the same intervals is checked first.

"words": only the words tier is asked for, as the aligner does; praatio knows no such choice. "all tiers": every
interval. "from memory": without opening a file, as the aligner has its bytes from a table; praatio still opens it.
"WordIntervals": with silence left out and records made, which praatio does not do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path

from praatio import textgrid as praatio

from earmark.alignment.intervals import WordInterval
from earmark.alignment.textgrid import parse_textgrid, word_intervals
from earmark.artifacts import read_table

LENGTHS_S = (12.0, 600.0)
Interval = tuple[float, float, str]


def joined_utterances(word_times: Path, length_s: float) -> Iterator[list[Interval]]:
    """The words of demo utterances, one after the other until they last `length_s`."""
    words: list[Interval] = []
    for row in read_table(word_times).to_pylist():
        offset_s = words[-1][1] if words else 0.0
        words += [(round(offset_s + w["start_s"], 4), round(offset_s + w["end_s"], 4), w["word"]) for w in row["words"]]
        if words[-1][1] >= length_s:
            yield words
            words = []


def tiers_of(words: list[Interval]) -> dict[str, list[Interval]]:
    """Words and phones without gaps, as MFA writes them; a phone for three of four letters."""
    filled: list[Interval] = []
    phones: list[Interval] = []
    for start_s, end_s, word in [*words, (words[-1][1] + 0.2, words[-1][1] + 0.2, "")]:
        place_s = filled[-1][1] if filled else 0.0
        if start_s > place_s:
            filled.append((place_s, round(start_s, 4), ""))
            phones.append(filled[-1])
        if word:
            filled.append((start_s, end_s, word))
            count = max(1, len(word) * 3 // 4)
            edges = [round(start_s + (end_s - start_s) * place / count, 4) for place in range(count)] + [end_s]
            phones += [(first, second, "AH0") for first, second in pairwise(edges)]
    return {"words": filled, "phones": phones}


def long_text(tiers: dict[str, list[Interval]]) -> str:
    end_s = next(iter(tiers.values()))[-1][1]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end_s} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {end_s} ", f"        intervals: size = {len(intervals)} "]
        for place, (start_s, end, label) in enumerate(intervals, start=1):
            lines += [f"        intervals [{place}]:", f"            xmin = {start_s} ", f"            xmax = {end} "]
            lines += [f'            text = "{label}" ']
    return "\n".join(lines) + "\n"


def short_text(tiers: dict[str, list[Interval]]) -> str:
    end_s = next(iter(tiers.values()))[-1][1]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", f"{end_s}", "<exists>", f"{len(tiers)}"]
    for name, intervals in tiers.items():
        lines += ['"IntervalTier"', f'"{name}"', "0", f"{end_s}", f"{len(intervals)}"]
        lines += [f'{start_s}\n{end}\n"{label}"' for start_s, end, label in intervals]
    return "\n".join(lines) + "\n"


def by_praatio(path: str, data: bytes) -> praatio.Textgrid:
    return praatio.openTextgrid(path, includeEmptyIntervals=True)


def the_bytes(path: str, data: bytes) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 (a Path costs as much as the reading)
        return file.read()


def words_in_memory(path: str, data: bytes) -> list[Interval]:
    return next(tier for tier in parse_textgrid(data, path) if tier.name == "words").intervals


def words_of_file(path: str, data: bytes) -> list[Interval]:
    return words_in_memory(path, the_bytes(path, data))


def all_tiers_of_file(path: str, data: bytes) -> list[list[Interval]]:
    return [tier.intervals for tier in parse_textgrid(the_bytes(path, data), path)]


def words_of_the_aligner(path: str, data: bytes) -> list[WordInterval]:
    return word_intervals(parse_textgrid(data, path), None, path)


READERS: dict[str, Callable[[str, bytes], object]] = {
    "praatio": by_praatio,
    "words": words_of_file,
    "all tiers": all_tiers_of_file,
    "words, from memory": words_in_memory,
    "WordIntervals, from memory": words_of_the_aligner,
    "only reading the bytes": the_bytes,
}


def check(files: dict[str, bytes]) -> None:
    for path, data in files.items():
        theirs = [[tuple(entry) for entry in tier.entries] for tier in by_praatio(path, data).tiers]
        if all_tiers_of_file(path, data) != theirs or words_of_file(path, data) != theirs[0]:
            raise SystemExit(f"{path}: praatio reads something else")


def best_seconds(files: dict[str, bytes], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(READERS, float("inf"))
    for _ in range(rounds):
        for name, read in READERS.items():
            started = time.process_time()
            for path, data in files.items():
                read(path, data)
            best[name] = min(best[name], time.process_time() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--word-times", type=Path, default=Path("data/demo/word_times.parquet"))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    forms = (("long", long_text), ("short", short_text))
    for length_s, (form, text) in product(LENGTHS_S, forms):
        grids = [tiers_of(words) for words in joined_utterances(options.word_times, length_s)]
        with tempfile.TemporaryDirectory() as folder:
            files = {f"{folder}/{number}.TextGrid": text(grid).encode() for number, grid in enumerate(grids)}
            for path, data in files.items():
                Path(path).write_bytes(data)
            check(files)
            best = best_seconds(files, options.rounds)
        size_kb = sum(map(len, files.values())) / len(files) / 1e3
        intervals = sum(len(tier) for grid in grids for tier in grid.values()) / len(grids)
        print(
            f"{form}, {length_s:.0f} s: {len(files)} files of {size_kb:.1f} kB, {intervals:.0f} intervals, read alike"
        )
        for name, seconds in best.items():
            each_us = seconds / len(files) * 1e6
            print(f"  {name:28}{each_us:9.1f} us a file  {best['praatio'] / seconds:6.1f} x praatio")


if __name__ == "__main__":
    main()
