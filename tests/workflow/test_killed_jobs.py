"""A run killed by SIGKILL in each stage in turn ends with the same artifacts as one that nobody disturbed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILLER = Path(__file__).parent / "killer"

# One artifact of every rule, in the order in which they come to be.
ARTIFACTS = (
    "corpus/manifest/0001.parquet",
    "corpus/manifest.json",
    "corpus/0000.parquet",
    "glossary/alt2main.json",
    "alignments/0001.parquet",
    "evaluation/alignment.json",
    "chunks/0000.parquet",
    "splits/dev.parquet",
    "funnel.json",
    "export/wavs/0001",
    "export/conversation/dev.jsonl",
    "term_level_chunks_merged.json",
    "features/retriever/0000.parquet",
    "models/retriever",
    "index/retriever",
    "evaluation/retriever/predictions.parquet",
    "report.html",
)


def test_killed_in_every_stage_in_turn_ends_like_an_undisturbed_run(
    tmp_path: Path,
    run_snakemake: Callable,
    checksums: Callable,
    small_config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        **small_config,
        "retrieval": {"random_control": False},
        "export": {"formats": ["conversation"], "interchange": True},
    }
    folder = tmp_path / "run"  # the same path for both: exports name files by their absolute path

    whole = run_snakemake(folder, configfile=config, timeout=600)
    assert whole.status == 0, whole.output[-4000:]
    undisturbed = checksums(folder / "data/small")
    folder.rename(tmp_path / "undisturbed")

    monkeypatch.setenv("PYTHONPATH", str(KILLER))
    for artifact in ARTIFACTS:
        monkeypatch.setenv("KILL_BEFORE_RENAME", f"data/small/{artifact}")
        # Asked for by name, so that nothing runs ahead of the artifact that is to be cut off.
        killed = run_snakemake(folder, f"data/small/{artifact}", configfile=config, timeout=600)
        assert killed.status == -signal.SIGKILL, f"{artifact}: {killed.output[-2000:]}"
        assert not (folder / "data/small" / artifact).exists(), f"{artifact} looks whole after the kill"
        monkeypatch.delenv("KILL_BEFORE_RENAME")
        assert run_snakemake(folder, configfile=config, arguments=("--unlock",)).status == 0

    finished = run_snakemake(folder, configfile=config, timeout=600)
    assert finished.status == 0, finished.output[-4000:]
    assert checksums(folder / "data/small") == undisturbed
    leftovers = [path for path in (folder / "data/small").rglob("*") if path.name.endswith(".tmp")]
    assert not leftovers
