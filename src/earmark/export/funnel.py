"""The account of every row from split to training file: export/funnel.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from earmark.artifacts import table_counts, write_json
from earmark.errors import EarmarkError
from earmark.files import read_json


def counts_path(output: Path) -> Path:
    """`x.jsonl` -> `x.counts.json`, which says how many rows went into it and how many it lacks."""
    return output.with_name(output.stem + ".counts.json")


def write_export_funnel(exported: Mapping[tuple[str, str], Path], splits: Mapping[str, Path], output: Path) -> None:
    """Write {steps: [{format, split, unit, input, kept, rejected, reasons}]} from `exported[format, split]`, the
    counts that each export left, and the SPLITS tables.

    It stands apart from the run's funnel.json, which ends at the splits: exports are optional, and for other programs.
    EarmarkError where an export's kept + rejected is not its input, or its input is not what the split holds.
    """
    steps = []
    for (format, split), path in exported.items():
        counts = read_json(path)
        rows = table_counts(splits[split])["kept"]
        if not counts["kept"] + counts["rejected"] == counts["input"] == rows:
            raise EarmarkError(f"{path}: {counts} do not account for the {rows} rows of {splits[split]}; export again")
        steps.append({"format": format, "split": split, **counts})
    write_json(output, {"steps": steps})
