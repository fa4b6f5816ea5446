"""`earmark resources`, and the same table for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earmark.cluster.plan import plan_path, read_plan
from earmark.cluster.status_page import clock
from earmark.cluster.usage import RuleUsage, by_rule, run_usage

COLUMNS = (
    "rule", "jobs", "wait", "longest wait", "run time", "longest run", "asked time", "CPU", "threads",
    "p95 MB", "largest MB", "asked MB", "GPU", "GPU busy", "GPU MB",
)  # fmt: skip


def print_usage(run: str | None, *, folder: Path) -> None:
    """Print what the jobs of a run asked for and used, and advice. InputError where the run has no plan."""
    path = plan_path(run, folder)
    rules = by_rule(run_usage(read_plan(path), folder))
    if not rules:
        print(f"{path.parent.name}: no job has ended yet")
        return
    rows = [COLUMNS, *map(cells, rules)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print(
            "  ".join(f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}" for i, (cell, width) in _paired(row, widths))
        )
    for sentence in advice(rules):
        print(sentence)


def cells(rule: RuleUsage) -> tuple[str, ...]:
    """A rule's figures as COLUMNS shows them; "-" for what does not apply or was not measured."""
    return (
        rule.rule,
        f"{rule.jobs} ({rule.retried} retried)" if rule.retried else str(rule.jobs),
        clock(rule.wait_median_s),
        clock(rule.wait_max_s),
        clock(rule.run_s),
        clock(rule.run_max_s),
        clock(None if rule.asked_min is None else 60 * rule.asked_min),
        "-" if rule.cpu_efficiency is None else f"{rule.cpu_efficiency:.0%}",
        _whole(rule.threads),
        _whole(rule.used_p95_mb),
        _whole(rule.used_max_mb),
        _whole(rule.asked_mb),
        rule.gpu or "-",
        "-" if rule.gpu_busy is None else f"{rule.gpu_busy:.0%}",
        "-" if rule.gpu_mb is None else f"{rule.gpu_mb:.0f} of {rule.gpu_total_mb:.0f}",
    )


def advice(rules: Sequence[RuleUsage]) -> list[str]:
    """Where jobs asked for much more than they used, or nearly for too little."""
    return [sentence for rule in rules for sentence in (rule.advice(), rule.gpu_advice()) if sentence]


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _paired(row: Sequence[str], widths: Sequence[int]) -> enumerate[tuple[str, int]]:
    return enumerate(zip(row, widths, strict=True))
