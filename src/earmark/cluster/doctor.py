"""`earmark doctor`: whether this machine can run this configuration, a line a check, before hours of jobs find out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from earmark.errors import EarmarkError


class Verdict(StrEnum):
    """`problem`: the run would fail here. `warning`: it may, or something is lost."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it where it is not ok."""

    verdict: Verdict
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(Verdict.OK, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """The run may fail, or lose something."""
    return Finding(Verdict.WARNING, subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    """The run would fail."""
    return Finding(Verdict.PROBLEM, subject, text, remedy)


def examine(workflow: Path, configfiles: Sequence[Path]) -> bool:
    """Run every check that matters to the configuration, print each finding; return whether there is no problem.

    `workflow` is the folder of the Snakefile and its config.yaml; `configfiles` override it, as for Snakemake. Paths in
    the configuration count from the working directory, as for Snakemake.
    """
    counts = dict.fromkeys(Verdict, 0)
    for finding in _findings(workflow, configfiles):
        counts[finding.verdict] += 1
        print(f"{finding.verdict:<8} {finding.subject}: {finding.text}", flush=True)
        if finding.remedy:
            print(f"{'':<8}   -> {finding.remedy}", flush=True)
    print(f"ok: {counts[Verdict.OK]}, warnings: {counts[Verdict.WARNING]}, problems: {counts[Verdict.PROBLEM]}")
    return not counts[Verdict.PROBLEM]


def _findings(workflow: Path, configfiles: Sequence[Path]) -> Iterator[Finding]:
    # Imported here: each check brings what it looks at, and cheap answers come first.
    from earmark.cluster import machine_checks, run_checks
    from earmark.config import check_config

    yield from machine_checks.python()
    yield from machine_checks.packages()
    try:
        config = run_checks.merged_config(workflow, configfiles)
        check_config(config, workflow / "workflow/schemas/config.schema.yaml")
    except EarmarkError as error:
        yield problem("configuration", str(error), "mend it, then ask again: the other checks depend on it")
        return
    names = ", ".join(map(str, configfiles)) or "the defaults"
    yield ok("configuration", f"valid: {names}, run {config['run']!r}")
    yield from machine_checks.disk(Path(config["data_dir"]))
    yield from machine_checks.slurm(config["cluster"], config["train"]["processes"], config["train"]["nodes"])
    yield from run_checks.aligner(config)
    yield from run_checks.glossary(config)
    yield from run_checks.audio(config)
    yield from run_checks.word_list(config)
    yield from run_checks.models(config)
    yield from run_checks.funasr(config)
    yield from machine_checks.gpu(config["cluster"])
    yield from run_checks.training_step(config)
