"""A finished run, which tests look at, continue or copy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ARTIFACT_OF = {
    "corpus": "corpus/0001.parquet",
    "align": "alignments/0001.parquet",
    "glossary": "glossary/glossary.json",
    "chunks": "chunks/0001.parquet",
    "merge": "funnel.json",
    "export": "export/flat/test.jsonl",
    "train": "models/retriever/modules.json",
    "index": "index/retriever/terms.parquet",
    "evaluate": "evaluation/retriever/metrics.json",
    "report": "report.html",
}

# A dry run tells the message of a rule that has one, and not what its jobs ask for: here it is to tell that.
TELL_RESOURCES = """
from snakemake.cli import main
from snakemake.logging import DefaultFormatter
DefaultFormatter.format_job_info = lambda self, said: "\\n".join(self._format_job_info(said))
main()
"""


@pytest.fixture(scope="session")
def asked_resources(repo: Path) -> Callable[[Path, str, dict[str, Any]], dict[str, dict[str, str]]]:
    """asked_resources(folder, profile, config): what a dry run, started in the repository as README has it, says that
    the jobs of each rule ask for."""

    def resources(folder: Path, profile: str, config: dict[str, Any]) -> dict[str, dict[str, str]]:
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-c", TELL_RESOURCES, "--profile", profile, "--dry-run", "--directory", str(folder)]
        command += ["--configfile", str(folder / "config.yaml")]
        done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
        jobs = re.split(r"^(?:local)?rule (\w+):$", said, flags=re.MULTILINE)[1:]
        found = {}
        for rule, text in zip(jobs[::2], jobs[1::2], strict=True):
            listed = re.search(r"^ +resources: (.+)$", text, re.MULTILINE)
            found[rule] = dict(pair.split("=", 1) for pair in listed[1].split(", ")) if listed else {}
        return found

    return resources


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, run_snakemake: Callable, small_config: dict[str, Any]) -> Path:
    """A folder in which the stages were asked for by name, one after the other.

    It stays as it is: who changes anything works on a copy.
    """
    folder = tmp_path_factory.mktemp("chain")
    for stage, artifact in ARTIFACT_OF.items():
        run = run_snakemake(folder, stage, configfile=small_config, timeout=600)
        assert run.status == 0, run.output[-4000:]
        assert (folder / "data/small" / artifact).exists(), f"{stage} wrote nothing"
    run = run_snakemake(folder, configfile=small_config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    return folder
