"""Part of a finished run is made again on Slurm: the jobs of that part, and no others."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

# With what `earmark resources` may advise: fewer threads make nothing else run again.
STAGE = ("--forcerun", "align_shard", "--until", "align_shard", "--set-threads", "align_shard=1")


@pytest.mark.parametrize(
    ("arguments", "targets", "changed", "rules"),
    [
        pytest.param(STAGE, (), {}, {"align_shard_wildcards_0000", "align_shard_wildcards_0001"}, id="a stage alone"),
        pytest.param(
            ("--force",), ("data/small/chunks/0001.parquet",), {}, {"chunks_shard_wildcards_0001"}, id="a shard alone"
        ),
        pytest.param(
            (),
            (),
            {"evaluate": {"bootstrap_resamples": 21}},
            {"evaluate_backend_wildcards_retriever", "report"},
            id="a changed key",
            marks=pytest.mark.slurm_full,
        ),
    ],
)
def test_what_is_asked_for_is_made_again_and_nothing_else(
    arguments: tuple[str, ...],
    targets: tuple[str, ...],
    changed: dict[str, Any],
    rules: set[str],
    cluster: Cluster,
    undisturbed: Path,
    config: dict[str, Any],
    new_jobs: Callable,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder, symlinks=True)
    artifacts = {path for path in (folder / "data/small").rglob("*") if path.is_file() and path.suffix == ".parquet"}
    times = {path: path.stat().st_mtime_ns for path in artifacts}
    other = {section: {**config[section], **keys} for section, keys in changed.items()}
    call = cluster.snakemake(folder, *targets, config={**config, **other}, arguments=arguments)
    assert call.wait(300) == 0, call.output[-4000:]
    jobs = new_jobs()
    assert Counter(job.rule.removeprefix("rule_") for job in jobs) == Counter(rules)
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert {job.cpus for job in jobs} == {"1"}
    anew = {
        path.relative_to(folder / "data/small").parts[0] for path in artifacts if path.stat().st_mtime_ns > times[path]
    }
    stages = {"align_shard": "alignments", "chunks_shard": "chunks", "evaluate_backend": "evaluation"}
    assert anew == {stages[rule.split("_wildcards_")[0]] for rule in rules - {"report"}}
