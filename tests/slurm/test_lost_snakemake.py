"""Snakemake itself is interrupted or killed; a second call finishes the run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until

ALIGNED = "data/small/alignments/0000.parquet"


def test_an_interrupted_snakemake_cancels_its_jobs_and_the_next_one_finishes(
    cluster: Cluster, before: Callable, config: dict[str, Any], checksums: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    folder, marker = before("alignments"), tmp_path / "held"
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    job, _ = cluster.held(marker, call)
    call.signal(signal.SIGINT)
    assert call.wait(60) != 0
    until(lambda: not cluster.unfinished(), "its jobs gone", 30)
    assert [found.state for found in cluster.jobs(job)] == ["CANCELLED"]
    assert not (folder / ALIGNED).exists()

    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    assert call.wait(240) == 0, call.output[-4000:]
    name = "alignments/0000.parquet"
    assert checksums(folder / "data/small")[name] == checksums(undisturbed / "data/small")[name]


@pytest.mark.parametrize("way", ["by hand", "earmark resume"])
def test_a_killed_snakemake_leaves_job_and_lock_and_the_run_is_taken_up(
    way: str,
    cluster: Cluster,
    before: Callable,
    config: dict[str, Any],
    checksums: Callable,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    folder, marker = before("alignments"), tmp_path / "held"
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    job, _ = cluster.held(marker, call)
    call.signal(signal.SIGKILL)
    call.wait(60)
    assert [found.state for found in cluster.jobs(job)] == ["RUNNING"]

    if way == "by hand":
        call = cluster.snakemake(folder, ALIGNED, config=config)
        assert call.wait(60) != 0
        assert "--unlock" in call.output
        # As README has it.
        cluster.run("scancel", job)
        until(lambda: not cluster.unfinished(), "the job gone", 30)
        assert cluster.snakemake(folder, config=config, arguments=("--unlock",)).wait(60) == 0
        call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    else:
        earmark = str(Path(sys.executable).with_name("earmark"))
        call = cluster.start(folder, earmark, "resume")
        assert call.wait(60) == 1
        assert f"job {job}: align_shard 0000, running" in call.output
        call = cluster.start(folder, earmark, "resume", "--cancel", environment=hold)
    assert call.wait(240) == 0, call.output[-4000:]
    assert [found.state for found in cluster.jobs(job)] == ["CANCELLED"]
    name = "alignments/0000.parquet"
    assert checksums(folder / "data/small")[name] == checksums(undisturbed / "data/small")[name]
