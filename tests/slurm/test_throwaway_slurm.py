"""The throwaway Slurm itself: nothing of it is left, whatever ends it; it says why where it cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cluster import HERE, Cluster, until


def _up(*arguments: str) -> Cluster:
    started = subprocess.run([str(HERE / "up.sh"), *arguments], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    return Cluster(Path(started.stdout.strip()))


def _inside(cluster: Cluster) -> str:
    """The process namespace in which all of a cluster's processes live."""
    return str(Path(f"/proc/{(cluster.folder / 'first_pid').read_text().strip()}/ns/pid").readlink())


def _living(namespace: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = str((process / "ns/pid").readlink()) == namespace
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # ended meanwhile
            continue
        if inside and not zombie:
            found.append((process / "cmdline").read_text())
    return found


def test_a_second_one_stands_beside_the_first_and_goes_with_its_owner(slurm: Cluster) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    second = _up("--owner", str(owner.pid))
    namespace = _inside(second)
    second.run("sbatch", "--wrap", "sleep 600", "--output=/dev/null")
    until(lambda: [job.state for job in second.jobs()] == ["RUNNING"], "a running job", 30)
    assert any("sleep" in name for name in _living(namespace))
    owner.kill()
    owner.wait()
    until(lambda: not _living(namespace), "all of its processes gone", 30)
    until(lambda: not second.folder.exists(), "its folder gone", 10)
    assert slurm.run("sinfo", "-h", "-o", "%D %P").split() == ["3", "cpu*", "2", "gpu"]


@pytest.mark.usefixtures("slurm")  # skipped where there can be none
def test_taken_down_twice_leaves_nothing() -> None:
    cluster = _up()
    namespace = _inside(cluster)
    assert len(_living(namespace)) >= 7
    for _ in range(2):
        subprocess.run([str(HERE / "down.sh"), str(cluster.folder)], check=True, timeout=60)
        assert _living(namespace) == []
        assert not cluster.folder.exists()


@pytest.mark.usefixtures("slurm")
def test_without_root_it_says_so() -> None:
    done = subprocess.run(["unshare", "--user", str(HERE / "up.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "it takes root" in done.stderr
