"""A training on two nodes: the model of two processes on one node, and one fate for all of its processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import REPO, Cluster, Job, until
from safetensors.torch import load_file

TWO_NODES = {"nodes": 2, "processes": 1}
# Inside the cluster: what runs of a job's training, as "process rank" lines.
_TRAINING = """
import psutil, sys
for process in psutil.process_iter(["pid", "environ"]):
    environment = process.info["environ"] or {}
    if environment.get("SLURM_JOB_ID") == sys.argv[1] and "RANK" in environment and process.status() != "zombie":
        print(process.pid, environment["RANK"])
"""


def training(cluster: Cluster, job: str) -> dict[str, str]:
    """The processes that train for a job, by their rank."""
    lines = cluster.run(sys.executable, "-c", _TRAINING, job).splitlines()
    return {rank: pid for pid, rank in (line.split() for line in lines)}


@pytest.fixture
def trained(before: Callable, cluster: Cluster, new_jobs: Callable, checksums: Callable) -> Callable:
    """trained(config, train): the checksums of models that are trained by one undisturbed job, and that job."""

    def run(config: dict[str, Any], **train: int) -> tuple[dict[str, str], Job, Path]:
        known = {job.id for job in new_jobs()}
        folder = before("models")
        call = cluster.snakemake(folder, "train", config=config | {"train": config["train"] | train})
        assert call.wait(300) == 0, call.output[-4000:]
        (job,) = (job for job in new_jobs() if job.id not in known)
        models = checksums(folder / "data/small/models")
        assert not list((folder / "data/small/models").glob(".*"))
        return models, job, folder

    return run


def test_two_nodes_train_the_model_of_two_processes_on_one(trained: Callable, config: dict[str, Any]) -> None:
    together, job, folder = trained(config, **TWO_NODES)
    assert (job.node, job.gres, job.memory) == ("g[1-2]", "gres:gpu:1", "3500M")
    # A second copy of the script on the other node would have counted itself as a second attempt.
    assert json.loads((folder / "logs/small/train/retriever.job.json").read_text())["attempt"] == 1
    folder.rename(folder.with_name("two_nodes"))
    alone, job, _ = trained(config, nodes=1, processes=2)
    assert (job.node, job.gres) in {("g1", "gres:gpu:2"), ("g2", "gres:gpu:2")}
    assert together == alone


def _of_rank_1(cluster: Cluster, job: str) -> None:
    """What runs for the second node ends at once, as for want of memory there."""
    cluster.run("kill", "-KILL", training(cluster, job)["1"])


def _scancel(cluster: Cluster, job: str) -> None:
    cluster.run("scancel", job)


@pytest.mark.slurm_full
@pytest.mark.parametrize(
    ("end", "state"), [(_of_rank_1, "FAILED"), (_scancel, "CANCELLED")], ids=["a process killed", "scancel"]
)
def test_what_ends_one_process_ends_all_and_the_next_job_goes_on(
    end: Callable,
    state: str,
    cluster: Cluster,
    before: Callable,
    config: dict[str, Any],
    new_jobs: Callable,
    marker: Path,
) -> None:
    folder = before("models")
    hold = {"AT": "*/.retriever.checkpoint/*/checkpoint-8", "HELD": str(marker)}  # the second epoch's; it has 4 steps
    two_nodes = config | {"train": config["train"] | TWO_NODES}
    call = cluster.snakemake(folder, "train", config=two_nodes, environment=hold)
    job, _ = cluster.held(marker, call)  # the first epoch is saved; the first process is about to save the second
    log = folder / "logs/small/train/retriever.log"
    first_log = log.open(encoding="utf-8")  # the next attempt writes another file
    assert sorted(training(cluster, job)) == ["0", "1"]
    end(cluster, job)
    until(lambda: not training(cluster, job), "all of its processes gone", 120, call=call)
    until(lambda: job not in {left.id for left in cluster.unfinished()}, "the job gone", 120, call=call)
    said = first_log.read()
    assert ("one of 2 training processes on 2 nodes ended without a word of its own" in said) == (state == "FAILED")
    assert call.wait(300) == 0, call.output[-4000:]
    assert [(found.state, found.node) for found in new_jobs()] == [(state, "g[1-2]"), ("COMPLETED", "g[1-2]")]
    assert "a killed training of this configuration goes on from" in log.read_text()


@pytest.mark.slurm_full
def test_two_nodes_train_the_speech_llm_of_two_processes_on_one(
    cluster: Cluster,
    undisturbed: Path,
    config: dict[str, Any],
    new_jobs: Callable,
    tmp_path: Path,
) -> None:
    base = tmp_path / "tiny_qwen3"
    make = [sys.executable, str(REPO / "benchmarks/tiny_qwen3.py"), str(base), "--hidden-size", "64", "--layers", "2"]
    subprocess.run(make, check=True, timeout=120)
    section = {"qwen3_model": str(base), "train_qwen3_layers": 2, "num_train_epochs": 1, "learning_rate": 0.003}
    folder = undisturbed.with_name("run")  # where the exported lines say that the wavs are
    shutil.copytree(undisturbed, folder, symlinks=True)
    model = "data/small/models/whisper_qwen3"
    weights = []
    try:
        for nodes, processes in ((2, 1), (1, 2)):
            train = {"backends": ["retriever", "whisper_qwen3"], "nodes": nodes, "processes": processes}
            speech_llm = config | {"train": config["train"] | train, "speech_llm": section}
            call = cluster.snakemake(folder, model, config=speech_llm)
            assert call.wait(400) == 0, call.output[-4000:]
            weights.append(load_file(folder / model / "trained.safetensors"))
            shutil.rmtree(folder / model)
    finally:
        shutil.rmtree(folder)
    together, alone = new_jobs()
    assert (together.state, together.node, alone.state) == ("COMPLETED", "g[1-2]", "COMPLETED")
    # Each process has its own batch, the same wherever it runs.
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-3, rtol=1e-3, msg=name)
