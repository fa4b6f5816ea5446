"""What `earmark` tells of a run on Slurm: what waits and why, what runs where, and what it used."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster, until

EARMARK = str(Path(sys.executable).with_name("earmark"))
ALIGNED = "data/small/alignments/0000.parquet"


def test_a_job_is_followed_from_the_queue_to_its_figures(
    cluster: Cluster, before: Callable, config: dict[str, Any], tmp_path: Path
) -> None:
    folder, marker = before("alignments"), tmp_path / "held"

    def earmark(*arguments: str) -> str:
        return cluster.run(EARMARK, *arguments, "--directory", str(folder))

    cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
        call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
        until(lambda: any(job.state == "PENDING" for job in cluster.unfinished()), "a waiting job", 90, call=call)
        (waiting,) = cluster.unfinished()
        status = earmark("status")
        assert f"queued   align_shard 0000, job {waiting.id}, for 0:" in status
        assert "PartitionDown" in status
    finally:
        cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")

    job, node = cluster.held(marker, call)
    assert job == waiting.id
    assert f"running  align_shard 0000, job {job}, on {node}, for 0:" in earmark("status")
    assert f"logs/slurm/rule_align_shard/0000/{job}.log <==" in earmark("tail", "align")

    Path(f"{marker}.go").touch()
    assert call.wait(240) == 0, call.output[-4000:]
    status = earmark("status")
    assert "all that was asked for is made" in status
    assert "failed" in status.splitlines()[1]
    (header, used, *advice) = (line for line in earmark("resources").splitlines() if line.strip())
    columns = [name for name in header.split("  ") if name.strip()]
    cells = dict(zip([name.strip() for name in columns], used.split(), strict=True))
    assert cells["rule"] == "align_shard"
    assert cells["wait"] != "-"
    assert (cells["asked time"], cells["asked MB"], cells["threads"], cells["GPU"]) == ("4:00:00", "1500", "2", "-")
    assert len(advice) == 1


def test_a_job_that_slurm_killed_is_failed_with_slurms_own_words(
    cluster: Cluster, before: Callable, config: dict[str, Any], tmp_path: Path
) -> None:
    folder, marker = before("alignments"), tmp_path / "held"
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold, arguments=("--retries", "0"))
    job, _ = cluster.held(marker, call)
    cluster.run("scancel", job)
    assert call.wait(240) != 0
    status = cluster.run(EARMARK, "status", "--directory", str(folder))
    assert "some jobs failed" in status
    assert f"failed   align_shard 0000, job {job}" in status
    assert "CANCELLED" in status


def test_what_a_job_makes_after_its_snakemake_was_killed_is_waited_for_and_kept(
    cluster: Cluster,
    before: Callable,
    config: dict[str, Any],
    checksums: Callable,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    folder, marker = before("alignments"), tmp_path / "held"
    call = cluster.snakemake(folder, ALIGNED, config=config, environment={"AT": f"*{ALIGNED}", "HELD": str(marker)})
    job, _ = cluster.held(marker, call)
    call.signal(signal.SIGKILL)
    call.wait(60)
    assert "Snakemake is gone without an end" in cluster.run(EARMARK, "status", "--directory", str(folder))

    resumed = cluster.start(folder, EARMARK, "resume", "--wait")
    until(lambda: f"job {job}: align_shard 0000, running" in resumed.output, "the job listed", 60, call=resumed)
    assert resumed.process.poll() is None
    Path(f"{marker}.go").touch()
    assert resumed.wait(240) == 0, resumed.output[-4000:]
    assert "Nothing to be done" in resumed.output
    assert [found.state for found in cluster.jobs(job)] == ["COMPLETED"]
    name = "alignments/0000.parquet"
    assert checksums(folder / "data/small")[name] == checksums(undisturbed / "data/small")[name]
