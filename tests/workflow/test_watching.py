"""A run is watched, loses its Snakemake and is taken up again, as a user would do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from earmark.cluster.job_record import read_record

EARMARK = str(Path(sys.executable).with_name("earmark"))
SHARD = Path("logs/small/corpus/0000.log")


def earmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EARMARK, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def row(status: str, stage: str) -> list[str]:
    """done, running, queued, waiting, failed."""
    (line,) = [line for line in status.splitlines() if line.split()[:1] == [stage]]
    done, of, total, *others = line.split()[1:]
    return [f"{done} {of} {total}", *others]


@pytest.fixture
def held_run(tmp_path: Path, repo: Path, small_config: dict[str, Any]):
    """Snakemake making the stage corpus, one of whose jobs has been stopped; ends with everything killed."""
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(small_config), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(repo / "Snakefile"),
        "--profile",
        str(repo / "profiles/local"),
    ]
    with (tmp_path / "out").open("w") as out:
        snakemake = subprocess.Popen(
            [*command, "corpus", "--configfile", "my.yaml"],
            cwd=tmp_path,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    end = time.monotonic() + 120
    while (record := read_record(tmp_path / SHARD)) is None:
        assert snakemake.poll() is None and time.monotonic() < end, (tmp_path / "out").read_text()
        time.sleep(0.01)
    os.kill(record.process.pid, signal.SIGSTOP)
    yield tmp_path, snakemake, record.process.pid
    with suppress(ProcessLookupError):
        os.killpg(snakemake.pid, signal.SIGKILL)
    snakemake.wait()


def test_a_killed_snakemake_is_seen_its_job_is_kept_from_running_twice_and_the_run_ends(held_run) -> None:
    folder, snakemake, job = held_run
    status = earmark(folder, "status").stdout
    assert status.startswith("small: Snakemake runs")
    assert row(status, "corpus")[1] in ("1", "2")
    assert f"running  corpus_shard 0000, on {os.uname().nodename}, for " in status
    said = earmark(folder, "resume").stderr
    assert f"Snakemake works in this folder (process {snakemake.pid}" in said

    snakemake.kill()
    snakemake.wait()
    assert "Snakemake is gone without an end" in earmark(folder, "status", "--run", "small").stdout
    refused = earmark(folder, "resume")
    assert refused.returncode == 1
    assert f"process {job} on this machine" in refused.stderr
    assert list((folder / ".snakemake/locks").iterdir())

    # Still stopped, else it might be done before it is cancelled: it is told to end, and after a while killed.
    resumed = earmark(folder, "resume", "--cancel")
    assert resumed.returncode == 0, resumed.stderr
    status = earmark(folder, "status").stdout
    assert "all that was asked for is made" in status
    assert row(status, "corpus") == ["3 of 3", "-", "-", "-", "-"]
    assert earmark(folder, "tail", "corpus", "-n", "1").stdout.endswith("INFO done\n")
    used = earmark(folder, "resources").stdout
    (shards,) = [line.split() for line in used.splitlines() if line.startswith("corpus_shard  ")]
    assert shards[1:6] == ["2", "(1", "retried)", "-", "-"]


def test_a_failed_run_says_which_job_and_why(
    tmp_path: Path, small_config: dict[str, Any], run_snakemake: Callable
) -> None:
    terms = tmp_path / "terms.json"
    terms.write_text('{"a": ')
    config = {**small_config, "glossary": {**small_config["glossary"], "terms": [str(terms)]}}
    assert run_snakemake(tmp_path / "run", "glossary", "corpus", configfile=config).status == 1
    status = earmark(tmp_path / "run", "status").stdout
    assert "some jobs failed" in status
    assert row(status, "corpus") == ["3 of 3", "-", "-", "-", "-"]
    assert row(status, "glossary") == ["0 of 1", "-", "-", "-", "1"]
    assert f"{terms}:1: not valid JSON" in status
    jobs = [json.loads(line) for line in earmark(tmp_path / "run", "status", "--json").stdout.splitlines()]
    assert {(job["rule"], job["state"]) for job in jobs if job["stage"] == "glossary"} == {("glossary", "failed")}
    assert len(jobs) == 4


def test_the_doctor_finds_nothing_wrong_with_what_the_tests_run(tmp_path: Path, small_config: dict[str, Any]) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(small_config), encoding="utf-8")
    found = earmark(tmp_path, "doctor", "--configfile", "my.yaml")
    assert found.returncode == 0, found.stdout
    lines = found.stdout.splitlines()
    assert sum(line.startswith("ok       audio: ") for line in lines) == 3
    assert any(line.startswith("ok       training: a step on ") for line in lines)
    assert "mfa" not in found.stdout
