"""The account of every row from manifest line to split: funnel.json."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from earmark.artifacts import read_table, table_counts, write_json
from earmark.errors import EarmarkError
from earmark.files import read_json


def write_funnel(
    manifest_counts: Path,
    corpus: list[Path],
    alignments: list[Path],
    chunks: list[Path],
    splits: dict[str, Path],
    output: Path,
) -> None:
    """Write funnel.json: {steps: [{step, unit, input, kept, rejected, reasons}], chunks, splits, ...}.

    `seen_test_speakers`: how many chunks of test are of speakers that training hears too, and whose. `corpus` and
    `alignments` are empty where the chunks came from a file. EarmarkError where a step's kept + rejected is not its
    input, or its input is not what the step before kept.
    """
    manifest = read_json(manifest_counts)
    tables = {"corpus": corpus, "align": alignments, "chunks": chunks, "splits": list(splits.values())}
    steps = [_step("manifest", [manifest])]
    steps += [_step(name, [table_counts(path) for path in paths]) for name, paths in tables.items() if paths]
    for step in steps:
        if step["kept"] + step["rejected"] != step["input"]:
            raise EarmarkError(f"the funnel does not add up: kept + rejected is not the input of {step}")
    for before, after in itertools.pairwise(steps):
        # Between align and chunks the unit changes: a segment gives any number of chunks.
        if before["step"] != "align" and before["kept"] != after["input"]:
            raise EarmarkError(f"the funnel does not add up: {before} hands over other rows than {after} was given")
    has_term = Counter(value for path in chunks for value in read_table(path, ["has_term"])["has_term"].to_pylist())
    write_json(
        output,
        {
            "steps": steps,
            "chunks": {"term": has_term[True], "no_term": has_term[False]},
            "splits": {name: _split(path) for name, path in splits.items()},
            "seen_test_speakers": _seen_speakers(splits["train"], splits["test"]),
            "without_speaker": manifest["without_speaker"],
        },
    )


def _step(name: str, counts: list[dict[str, Any]]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    for part in counts:
        reasons.update(part["reasons"])
    return {
        "step": name,
        "unit": counts[0]["unit"],
        **{key: sum(part[key] for part in counts) for key in ("input", "kept", "rejected")},
        "reasons": dict(sorted(reasons.items())),
    }


def _split(path: Path) -> dict[str, Any]:
    table = read_table(path, ["has_term", "seen_term", "main_term", "speaker_id", "duration_s"])
    term_rows = table.filter(pc.field("has_term"))
    seen = Counter(term_rows["seen_term"].to_pylist())
    return {
        "chunks": table.num_rows,
        "seen_term": seen[True],
        "unseen_term": seen[False],
        "no_term": table.num_rows - term_rows.num_rows,
        "main_terms": pc.count_distinct(term_rows["main_term"]).as_py(),
        "speakers": sorted(pc.unique(table["speaker_id"]).to_pylist()),
        "hours": round((pc.sum(table["duration_s"]).as_py() or 0.0) / 3600, 4),
    }


def _seen_speakers(train: Path, test: Path) -> dict[str, Any]:
    heard = pc.unique(read_table(train, ["speaker_id"])["speaker_id"])
    tested = read_table(test, ["speaker_id"])["speaker_id"]
    seen = tested.filter(pc.is_in(tested, heard))
    return {"chunks": len(seen), "speakers": sorted(pc.unique(seen).to_pylist())}
