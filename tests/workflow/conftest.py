"""A finished run, which tests look at, continue or copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
