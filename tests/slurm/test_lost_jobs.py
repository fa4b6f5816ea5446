"""Jobs that Slurm ends, and nodes that go: each run ends with the artifacts of one that nobody disturbed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Job, until

ALIGNED = "data/small/alignments/0000.parquet"


@pytest.fixture
def same(checksums: Callable, undisturbed: Path) -> Callable[[Path, str], None]:
    """same(folder, "models"): that stage's artifacts are the undisturbed run's, and nothing is half written."""

    def check(folder: Path, stage: str) -> None:
        of = {name: value for name, value in checksums(folder / "data/small").items() if name.startswith(stage)}
        known = checksums(undisturbed / "data/small")
        assert of, f"no {stage}"
        assert of == {name: known[name] for name in of}
        assert not [path for path in (folder / "data/small").rglob("*") if path.name.endswith(".tmp")]

    return check


def _states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def test_a_cancelled_job_is_submitted_anew(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable, marker: Path
) -> None:
    folder = before("alignments")
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    job, _ = cluster.held(marker, call)
    cluster.run("scancel", job)
    assert call.wait(240) == 0, call.output[-4000:]
    assert _states(new_jobs()) == ["CANCELLED", "COMPLETED"]
    same(folder, "alignments/0000.parquet")


def test_a_job_out_of_memory_is_submitted_anew_with_more(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable
) -> None:
    folder = before("glossary")
    eat = {"AT": "*data/small/glossary/glossary.json", "EAT_MB": "2300"}
    call = cluster.snakemake(folder, "glossary", config=config, environment=eat)
    assert call.wait(240) == 0, call.output[-4000:]
    jobs = new_jobs()
    assert [(job.state, job.memory) for job in jobs] in (
        [("FAILED", "2000M"), ("COMPLETED", "4000M")],
        [("OUT_OF_MEMORY", "2000M"), ("COMPLETED", "4000M")],
    )
    assert "memory" in (folder / f"logs/slurm/rule_glossary/{jobs[0].id}.log").read_text().lower()
    same(folder, "glossary")


def test_a_job_knows_when_its_time_is_up(cluster: Cluster, new_jobs: Callable) -> None:
    ask = "from earmark.checkpoint_times import job_end; print(job_end())"
    said = cluster.run("srun", "--time=7", sys.executable, "-c", ask)
    (job,) = new_jobs()
    started = datetime.fromisoformat(job.start).timestamp()  # %S, in local time as %e; %e is when it did end, by now
    assert float(said) == started + 7 * 60


def test_training_that_runs_out_of_time_goes_on_inside_the_epoch(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable, marker: Path
) -> None:
    folder = before("models")
    hold = {"AT": "*/.retriever.checkpoint/*/checkpoint-3", "HELD": str(marker)}
    at_every_step = config | {"train": config["train"] | {"checkpoint_minutes": 1e-9}}
    call = cluster.snakemake(folder, "train", config=at_every_step, environment=hold)
    job, _ = cluster.held(marker, call)  # two steps are saved, the third is about to be
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    assert call.wait(420) == 0, call.output[-4000:]
    assert [(job.state, job.limit, job.gres) for job in new_jobs()] == [
        ("TIMEOUT", "1:00", "gres:gpu:1"),
        ("COMPLETED", "8:00:00", "gres:gpu:1"),
    ]
    log = (folder / "logs/small/train/retriever.log").read_text()
    assert re.search(r"goes on from \S+/checkpoint-2, after 0\.\d+ epochs", log)
    same(folder, "models")


def test_the_job_of_a_dead_node_runs_on_another(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable, marker: Path
) -> None:
    folder = before("alignments")
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    _, node = cluster.held(marker, call)
    cluster.kill_node(node)
    try:
        assert call.wait(300) == 0, call.output[-4000:]
    finally:
        cluster.start_node(node)
    dead, last = new_jobs()
    assert (dead.state, dead.node, last.state) == ("NODE_FAIL", node, "COMPLETED")
    assert last.node != node
    same(folder, "alignments/0000.parquet")


def test_jobs_wait_while_nodes_are_drained_and_run_where_one_comes_back(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable
) -> None:
    folder = before("alignments")
    cluster.run("scontrol", "update", "NodeName=c[1-3]", "State=DRAIN", "Reason=maintenance")
    try:
        call = cluster.snakemake(folder, ALIGNED, config=config)
        until(lambda: any("NODE" in job.reason.upper() for job in new_jobs()), "a job that waits for a node", 120)
        assert _states(new_jobs()) == ["PENDING"]
        cluster.run("scontrol", "update", "NodeName=c2", "State=RESUME")
        assert call.wait(240) == 0, call.output[-4000:]
    finally:
        cluster.run("scontrol", "update", "NodeName=c[1,3]", "State=RESUME")
    assert [(job.state, job.node) for job in new_jobs()] == [("COMPLETED", "c2")]
    same(folder, "alignments/0000.parquet")


def test_a_restart_of_slurms_controller_goes_unnoticed(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable, marker: Path
) -> None:
    folder = before("alignments")
    hold = {"AT": f"*{ALIGNED}", "HELD": str(marker)}
    call = cluster.snakemake(folder, ALIGNED, config=config, environment=hold)
    cluster.held(marker, call)
    cluster.stop_controller()
    try:
        Path(f"{marker}.go").touch()  # the job ends while nobody takes note
        until((folder / ALIGNED).exists, "the job's artifact", 60)
    finally:
        cluster.start_controller()
    assert call.wait(240) == 0, call.output[-4000:]
    assert _states(new_jobs()) == ["COMPLETED"]
    same(folder, "alignments/0000.parquet")


def test_a_full_disk_is_named_and_leaves_no_half_file(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable
) -> None:
    folder = before("chunks")
    chunks = folder / "data/small/chunks"
    chunks.mkdir()
    cluster.run("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(chunks))
    try:
        call = cluster.snakemake(folder, "chunks", config=config, arguments=("--retries", "0"))
        assert call.wait(240) == 1, call.output[-4000:]
        log = (folder / "logs/small/chunks/0000.log").read_text().splitlines()
        assert "No space left on device" in log[-1]
        assert log[-1] in call.output
        assert "0000.parquet" not in cluster.run("ls", str(chunks))
    finally:
        cluster.run("umount", str(chunks))
    call = cluster.snakemake(folder, "chunks", config=config)
    assert call.wait(240) == 0, call.output[-4000:]
    same(folder, "chunks")


def test_a_stage_that_fails_for_good_leaves_the_others_running_and_says_why(
    cluster: Cluster, before: Callable, config: dict[str, Any], same: Callable, new_jobs: Callable
) -> None:
    folder = before("export")
    for name in ("features", "models"):
        assert not (folder / "data/small" / name).exists()
    broken = config | {"export": config["export"] | {"formats": ["funasr_nano"], "tokenizer": str(folder / "nowhere")}}
    targets = ("data/small/export/funasr_nano/dev.jsonl", "train")
    call = cluster.snakemake(folder, *targets, config=broken, arguments=("--retries", "1"))
    assert call.wait(600) == 1
    same(folder, "models")
    failed = [job for job in new_jobs() if job.state == "FAILED"]
    assert [job.rule for job in failed] == ["rule_export_split_wildcards_funasr_nano_dev"] * 2
    why = (folder / "logs/small/export/funasr_nano.dev.log").read_text().splitlines()[-1]
    assert "nowhere" in why and why in call.output
    assert "Error in rule export_split" in call.output
