"""What merging costs at scale: splits, funnel, interchange file and shards of synthetic chunks, and reading them back.

    .venv/bin/python benchmarks/merge_scale.py
    .venv/bin/python benchmarks/merge_scale.py --rows 10000000 --limits none 500

The chunks need no audio: their audio column is one constant. Half of them hold a term; the terms' frequencies fall as
1/rank. A recording has one speaker and 50 chunks; with --alone every chunk is a recording and a speaker of its own, as
in a corpus that names neither. 10 % of the speakers test, 5 % tune, 5 % of the terms are unseen. Each figure is that of
a process of its own; peak memory is its maximum resident set, some 130 MB of which are imports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from corpus_scale import measured

from earmark.artifacts import CHUNKS, StageTable, table_counts, write_json
from earmark.chunks.from_file import deal_entries
from earmark.chunks.funnel import write_funnel
from earmark.chunks.splits import SPLIT_NAMES, split_chunks
from earmark.export.interchange import write_interchange, write_interchange_shards

CHUNKS_PER_RECORDING = 50
RECORDINGS_PER_SPEAKER = 10
SHARD_ROWS = 100_000  # of an interchange shard
AUDIO = {"bytes": b"fLaC", "path": "x.flac"}
WORDS = ["time", "year", "people", "way", "day", "thing", "world", "school", "state", "family", "student"]


def shard_rows(first: int, rows: int, terms: int, alone: bool) -> pa.Table:
    """CHUNKS rows number `first` and on, made of columns."""
    random = np.random.default_rng(first)
    number = np.arange(first, first + rows)
    recording = number if alone else number // CHUNKS_PER_RECORDING
    speaker = number if alone else recording // RECORDINGS_PER_SPEAKER
    has_term = number % 2 == 0
    # Even in the logarithm of its rank, a term is as frequent as 1/rank.
    term = (terms ** random.random((3, rows))).astype(np.int64) - 1
    names = [named("term ", values) for values in term]
    main = pc.if_else(has_term, names[0], None)
    context = random.random(rows) < 0.3
    others = lists(names[1], has_term & context)
    touched = lists(pa.concat_arrays([names[0], names[1]]), np.concatenate([has_term, has_term & context]), rows)
    start_s = random.random(rows) * 10
    text = pa.array([" ".join(WORDS[place % 11 :][:6]) for place in range(rows)])
    columns = {
        "chunk_id": pc.binary_join_element_wise(named("REC", recording), named("S", number), "t000", "-"),
        "segment_id": pc.binary_join_element_wise(named("REC", recording), named("S", number), "-"),
        "recording_id": named("REC", recording),
        "speaker_id": named("SPK", speaker),
        "term": main,
        "main_term": main,
        "has_term": has_term,
        "other_terms": others,
        "touched_terms": touched,
        "text": text,
        "language": pa.repeat("en", rows),
        "start_s": start_s,
        "end_s": start_s + 2.3,
        "term_start_s": pc.if_else(has_term, start_s + 1, None),
        "term_end_s": pc.if_else(has_term, start_s + 1.3, None),
        "sample_rate": pa.repeat(pa.scalar(16_000, pa.int32()), rows),
        "audio": pa.repeat(pa.scalar(AUDIO, CHUNKS.field("audio").type), rows),
    }
    return pa.table(columns, schema=CHUNKS)


def named(prefix: str, numbers: np.ndarray) -> pa.Array:
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), 8, "0")
    return pc.binary_join_element_wise(prefix, digits, "")


def lists(values: pa.Array, there: np.ndarray, rows: int | None = None) -> pa.Array:
    """A list a row of the values that are `there`; of 2 * rows values, both value i and value rows + i go to row i."""
    rows = rows or len(values)
    place = np.arange(len(values)) % rows
    order = np.argsort(place, kind="stable")
    order = order[there[order]]
    lengths = np.bincount(place[order], minlength=rows)
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values.take(order))


def write_shards(folder: Path, rows: int, shards: int, terms: int, alone: bool) -> dict[str, Any]:
    for number in range(shards):
        first, last = rows * number // shards, rows * (number + 1) // shards
        path = folder / f"chunks/{number:04d}.parquet"
        with StageTable(path, CHUNKS, unit="chunks", max_rejected_fraction=0) as table:
            table.rejected.input = last - first
            table.keep_table(shard_rows(first, last - first, terms, alone))
    write_json(folder / "glossary.json", {f"term {number:08d}": {} for number in range(terms)})
    # The funnel's first steps, which do not depend on the chunks' number.
    manifest = {"unit": "entries", "input": rows, "kept": rows, "rejected": 0, "reasons": {}, "without_speaker": 0}
    write_json(folder / "manifest.json", manifest)
    return {}


def shards_of(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((folder / "chunks").iterdir()) if path.suffix == ".parquet"}


def split(folder: Path, limit: int | None) -> dict[str, Any]:
    split_chunks(
        shards_of(folder), folder / "glossary.json", folder / "splits", test_speakers=0.1, dev_speakers=0.05,
        unseen_terms=0.05, max_chunks_per_term=limit, seed=1,
    )  # fmt: skip
    return {}


def funnel(folder: Path) -> dict[str, Any]:
    splits = {name: folder / f"splits/{name}.parquet" for name in SPLIT_NAMES}
    chunks = list(shards_of(folder).values())
    write_funnel(folder / "manifest.json", [], [], chunks, splits, folder / "funnel.json")
    return {}


def interchange(folder: Path) -> dict[str, Any]:
    chunks = list(shards_of(folder).values())
    write_interchange(chunks, [folder / "wavs"] * len(chunks), folder / "merged.json", context_s=1.0)
    return {}


def interchange_shards(folder: Path) -> dict[str, Any]:
    chunks = list(shards_of(folder).values())
    wavs = [folder / "wavs"] * len(chunks)
    write_interchange_shards(chunks, wavs, folder / "shards", context_s=1.0, shard_rows=SHARD_ROWS)
    return {}


def deal(folder: Path, source: Path) -> dict[str, Any]:
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    shards = {name: folder / f"dealt/{name}.parquet" for name in shards_of(folder)}
    deal_entries(files, shards, folder / "dealt.json", recording_pattern=None, max_rejected_fraction=0.0)
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--terms", type=int, default=20_000)
    parser.add_argument("--alone", action="store_true", help="a recording and a speaker for every chunk")
    parser.add_argument("--limits", nargs="*", default=["none", "500"], help="values of splits.max_chunks_per_term")
    parser.add_argument("--interchange", action="store_true", help="the interchange file too, written and read")
    options = parser.parse_args()
    print(line("stage", "rows", "s", "cpu s", "rows/s", "peak MB"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost = measured(write_shards, folder, options.rows, options.shards, options.terms, options.alone)
        report("(writing the synthetic chunks)", options.rows, cost)
        for limit in options.limits:
            cost = measured(split, folder, None if limit == "none" else int(limit))
            report(f"splits, limit {limit}", options.rows, cost)
            kept = {split: table_counts(folder / f"splits/{split}.parquet")["kept"] for split in SPLIT_NAMES}
            report("funnel", options.rows, measured(funnel, folder))
            print(f"  {kept}")
        if options.interchange:
            report("interchange file", options.rows, measured(interchange, folder))
            report("its entries dealt to shards", options.rows, measured(deal, folder, folder / "merged.json"))
            report("interchange shards", options.rows, measured(interchange_shards, folder))
            report("their entries dealt to shards", options.rows, measured(deal, folder, folder / "shards"))


line = "{:<34}{:>10}{:>8}{:>8}{:>12}{:>10}".format


def report(what: str, rows: int, cost: dict[str, Any]) -> None:
    cells = f"{cost['seconds']:.1f}", f"{cost['cpu_s']:.1f}", f"{rows / cost['seconds']:,.0f}", f"{cost['peak_mb']:.0f}"
    print(line(what, rows, *cells), flush=True)


if __name__ == "__main__":
    main()
