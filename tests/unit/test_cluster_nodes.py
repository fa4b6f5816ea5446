"""Training on several nodes, as far as one machine without Slurm can have it: srun is a stand-in."""

from __future__ import annotations

import os
import sys

import pytest

from earmark.errors import ConfigError, EarmarkError
from earmark.torchrun import launch_folder, torchrun

# Two copies of the command on this machine; if one fails, so does it, and it ends the other.
SRUN = """#!/bin/bash
echo "$@" > {told}
env | grep -c '^SLURM_NTASKS=' >> {told}
while [[ $1 == --* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
trap 'kill -TERM $first $second; wait' TERM
wait -n; status=$?
((status)) && kill -TERM $first $second
wait
exit $status
"""
# What each process does: meets the others, then says who was there, or fails.
MODULE = """import os, sys
from pathlib import Path
from torch import distributed
from earmark.errors import InputError
from earmark.torchrun import process
with process():
    distributed.init_process_group("gloo")
    ranks = [None] * distributed.get_world_size()
    distributed.all_gather_object(ranks, os.environ["RANK"])
    if sys.argv[1] == "fail" and os.environ["RANK"] == "1":
        raise InputError("b.tsv:7: mend it")
    distributed.barrier()
    threads = [os.environ[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL")]
    Path(sys.argv[1], os.environ["RANK"]).write_text(" ".join([*ranks, *threads]))
"""


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    """A job of two nodes. Its srun writes what it was told, and how many variables of the outer step it was left."""
    told = tmp_path / "told"
    for path, text in ((tmp_path / "bin/srun", SRUN.format(told=told)), (tmp_path / "modules/together.py", MODULE)):
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), *filter(None, sys.path)]))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # as Snakemake has it
    return told


def test_every_node_has_an_agent_and_all_their_processes_meet(allocation, tmp_path):
    met = tmp_path / "met"
    met.mkdir()
    with launch_folder(tmp_path / "models/retriever", 2) as folder:
        torchrun("together", [str(met)], processes=2, threads=3, folder=folder, nodes=2)
    assert {path.name: path.read_text() for path in met.iterdir()} == {str(rank): "0 1 2 3 1 1" for rank in range(4)}
    options, left = allocation.read_text().splitlines()
    assert {"--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=3"} <= set(options.split())
    assert left == "0"
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.usefixtures("allocation")
def test_an_error_in_one_of_the_nodes_processes_is_told_here(tmp_path):
    with (
        launch_folder(tmp_path / "models/retriever", 2) as folder,
        pytest.raises(EarmarkError, match=r"^b\.tsv:7: mend it$"),
    ):
        torchrun("together", ["fail"], processes=1, threads=1, folder=folder, nodes=2)


def test_several_nodes_take_slurm(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=r"train\.nodes is 2, but this is no Slurm job"):
        torchrun("together", [], processes=1, threads=1, folder=tmp_path, nodes=2)


def test_what_a_killed_launch_left_is_not_taken_for_this_ones(tmp_path):
    left = tmp_path / ".retriever.launch/errors/0"
    left.parent.mkdir(parents=True)
    left.write_text("of another time")
    with launch_folder(tmp_path / "retriever", 2) as folder:
        assert folder == tmp_path / ".retriever.launch"
        assert not list(folder.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("allocation")
def test_a_node_whose_name_nobody_finds_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("socket.getfqdn", lambda: "node7.invalid")
    with pytest.raises(ConfigError, match=r"node7\.invalid, has no address"):
        torchrun("together", [], processes=1, threads=1, folder=tmp_path, nodes=2)
