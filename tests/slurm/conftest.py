"""One Slurm and one undisturbed run for all tests of a session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import HERE, Cluster, Job

# What a run makes, in the order of the chain.
STAGES = (
    "corpus", "glossary", "alignments", "chunks", "splits", "funnel.json", "export", "features", "models", "index",
    "evaluation", "config.json", "report.html",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of the session's own. Where this machine cannot have one: skipped, or failed if EARMARK_NEEDS_SLURM=1."""
    # Not below pytest's folder: a socket's path may have 108 characters.
    started = subprocess.run(
        [str(HERE / "up.sh"), "--owner", str(os.getpid())], capture_output=True, text=True, timeout=900
    )
    if started.returncode == 3:
        reason = started.stderr.strip().splitlines()[-1]
        if os.environ.get("EARMARK_NEEDS_SLURM") == "1":
            pytest.fail(f"{reason} (EARMARK_NEEDS_SLURM=1: these tests must run)")
        pytest.skip(reason)
    assert started.returncode == 0, started.stderr
    cluster = Cluster(Path(started.stdout.strip()))
    yield cluster
    subprocess.run([str(HERE / "down.sh"), str(cluster.folder)], check=True, timeout=60)


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    yield slurm
    slurm.tidy()


@pytest.fixture(scope="session")
def config(small_config: dict[str, Any]) -> dict[str, Any]:
    """The small run, without what only costs time here."""
    return {
        **small_config,
        "retrieval": {"random_control": False},
        "evaluate": {**small_config["evaluate"], "held_out_chunks": 0},
        "export": {"formats": ["conversation"], "interchange": True},
    }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run_snakemake: Callable, config: dict[str, Any]) -> Path:
    """The folder of a whole run on one machine.

    It ran in the folder `run` beside it, where the run on Slurm is to run (exports name files by their absolute path),
    and was moved away.
    """
    place = tmp_path_factory.mktemp("chain")
    run = run_snakemake(place / "run", configfile=config, timeout=900)
    assert run.status == 0, run.output[-4000:]
    return (place / "run").rename(place / "undisturbed")


@pytest.fixture
def before(undisturbed: Path, tmp_path: Path) -> Callable[[str], Path]:
    """before("models"): a copy of the undisturbed run as it was before that stage, ready to go on."""

    def copy(stage: str) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(undisturbed, folder)
        for name in STAGES[STAGES.index(stage) :]:
            path = folder / "data/small" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (folder / "data/small/term_level_chunks_merged.json").unlink()
        shutil.rmtree(folder / "logs")
        return folder

    return copy


@pytest.fixture
def new_jobs(cluster: Cluster) -> Callable[[], list[Job]]:
    """The jobs that this test gave to the queue."""
    known = {job.id for job in cluster.jobs()}
    return lambda: [job for job in cluster.jobs() if job.id not in known]


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Appears when a job is held; the job goes on when `{marker}.go` appears, at the latest when the test ends."""
    yield tmp_path / "held"
    Path(f"{tmp_path / 'held'}.go").touch()
