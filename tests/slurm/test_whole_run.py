"""The whole chain through Slurm gives what it gives on one machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster


@pytest.fixture
def folder(undisturbed: Path) -> Iterator[Path]:
    """Where the undisturbed run ran."""
    place = undisturbed.parent / "run"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def test_whole_run_on_slurm_equals_the_one_on_one_machine(
    cluster: Cluster, undisturbed: Path, folder: Path, config: dict, checksums: Callable, tmp_path: Path
) -> None:
    known = {job.id for job in cluster.jobs()}
    call = cluster.snakemake(folder, config=config, environment={"JOBS_SEEN": str(tmp_path)})
    assert call.wait(900) == 0, call.output[-4000:]
    assert checksums(folder / "data/small") == checksums(undisturbed / "data/small")

    jobs = [job for job in cluster.jobs() if job.id not in known]
    assert {job.state for job in jobs} == {"COMPLETED"}
    on_gpu = {job.rule.split("_wildcards_")[0] for job in jobs if job.partition == "gpu"}
    assert on_gpu == {"rule_encode", "rule_train_backend"}
    for job in jobs:
        # What the job itself saw: one of the node's two devices, or none.
        assert (tmp_path / job.id).read_text() in (("0", "1") if job.partition == "gpu" else ("",)), job
    aligned = [job for job in jobs if job.rule.startswith("rule_align_shard_wildcards_")]
    assert {job.rule[-4:] for job in aligned} == {"0000", "0001"}
    assert max(job.start for job in aligned) < min(job.end for job in aligned), "the shards waited for each other"
    for job in jobs:
        name, _, wildcards = job.rule.partition("_wildcards_")
        assert (folder / "logs/slurm" / name / wildcards / f"{job.id}.log").is_file(), job.rule

    again = cluster.snakemake(folder, config=config)
    assert again.wait(120) == 0
    assert "Nothing to be done" in again.output


@pytest.mark.slurm_full
def test_whole_run_ends_alike_though_the_first_job_of_every_rule_is_cancelled(
    cluster: Cluster, undisturbed: Path, folder: Path, config: dict, checksums: Callable
) -> None:
    known = {job.id for job in cluster.jobs()}
    call = cluster.snakemake(folder, config=config)
    cancelled: dict[str, str] = {}
    end = time.monotonic() + 2400
    while call.process.poll() is None and time.monotonic() < end:
        for job in cluster.unfinished():
            rule = job.rule.split("_wildcards_")[0]
            if job.state == "RUNNING" and job.id not in known and rule not in cancelled:
                cancelled[rule] = job.id
                cluster.run("scancel", job.id)
        time.sleep(1)
    assert call.wait(1) == 0, call.output[-4000:]
    assert checksums(folder / "data/small") == checksums(undisturbed / "data/small")
    states = {job.id: job.state for job in cluster.jobs() if job.id not in known}
    assert [states[job] for job in cancelled.values()].count("CANCELLED") >= 10
