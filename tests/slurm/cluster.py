"""The throwaway Slurm as tests see it: its queue, its nodes, and Snakemake on its login node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_QUEUE = {"id": "%i", "state": "%T", "partition": "%P", "rule": "%k", "node": "%N", "reason": "%r", "limit": "%l",
          "memory": "%m", "start": "%S", "end": "%e", "gres": "%b", "cpus": "%C"}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it.

    `rule` is rule_NAME or rule_NAME_wildcards_VALUES, `limit` as 4:00:00, `memory` (asked for) as 2000M.
    """

    id: str
    state: str
    partition: str
    rule: str
    node: str
    reason: str
    limit: str
    memory: str
    start: str
    end: str
    gres: str
    cpus: str


@dataclass
class SnakemakeCall:
    """A Snakemake that runs on the login node; what it says goes to `log`."""

    process: subprocess.Popen
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Its exit status. AssertionError with what it said, if it does not end in time; it is killed then."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"snakemake did not end within {timeout_s} s:\n{self.output[-4000:]}") from None

    def signal(self, number: int) -> None:
        """Signal Snakemake itself, not the programs that put it into the cluster."""
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            os.kill(int(pid), number)


@dataclass
class Cluster:
    """The Slurm that up.sh made in `folder`."""

    folder: Path
    calls: list[SnakemakeCall] = field(default_factory=list)

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """What a command on the login node prints."""
        done = subprocess.run(
            [str(HERE / "in_cluster"), str(self.folder), *command], capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def jobs(self, *ids: str) -> list[Job]:
        """The jobs with these ids, or all that ever were, in the order of their ids."""
        command = ["squeue", "--states=all", "--noheader", "--format=" + "|".join(_QUEUE.values())]
        lines = self.run(*command, *([f"--jobs={','.join(ids)}"] if ids else [])).splitlines()
        jobs = [Job(**dict(zip(_QUEUE, line.split("|"), strict=True))) for line in lines]
        return sorted(jobs, key=lambda job: int(job.id))

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs() if job.state not in ENDED]

    def snakemake(
        self,
        directory: Path,
        *targets: str,
        config: Mapping[str, Any],
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> SnakemakeCall:
        """Start `snakemake --profile slurm` in a folder, looking at the queue more often than the profile does."""
        (directory / "test_config.yaml").write_text(yaml.safe_dump(dict(config), allow_unicode=True), encoding="utf-8")
        command = ["-s", str(REPO / "Snakefile"), "--directory", str(directory), "--profile", str(REPO / "slurm")]
        command += ["--slurm-init-seconds-before-status-checks", "4", "--seconds-between-status-checks", "4"]
        command += [*arguments, *targets, "--configfile", str(directory / "test_config.yaml")]
        return self.start(directory, sys.executable, "-m", "snakemake", *command, environment=environment)

    def start(self, directory: Path, *command: str, environment: Mapping[str, str] | None = None) -> SnakemakeCall:
        """Start a command on the login node that is Snakemake or becomes it."""
        log = directory / f"call.{len(self.calls)}.log"
        path = os.pathsep.join(filter(None, [str(HERE / "hook"), os.environ.get("PYTHONPATH")]))
        with log.open("w") as file:
            process = subprocess.Popen(
                [str(HERE / "in_cluster"), str(self.folder), *command],
                cwd=directory, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            )  # fmt: skip
        self.calls.append(SnakemakeCall(process, log))
        return self.calls[-1]

    def held(self, marker: Path, call: SnakemakeCall, timeout_s: float = 240) -> tuple[str, str]:
        """Wait for a job that the hook holds: its id and its node."""
        until(marker.exists, f"a job held at {marker}", timeout_s, lambda: call.process.poll() is not None, call)
        job, node = marker.read_text().split()
        return job, node

    def kill_node(self, node: str) -> None:
        """A node dies at once, with its slurmd and all that runs on it."""
        self.run(sys.executable, str(HERE / "kill_node.py"), str(self.folder), node)

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        until(lambda: self.run("sinfo", "-h", "-n", node, "-o", "%T").startswith("idle"), f"{node} idle", 60)

    def stop_controller(self) -> None:
        pid = (self.folder / "run/slurmctld.pid").read_text().strip()
        self.run("kill", "-KILL", pid)

    def start_controller(self) -> None:
        self.run("slurmctld")
        until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld up again", 60)

    def tidy(self) -> None:
        """End what a test left: its Snakemake, its jobs; and every node takes jobs again."""
        for call in self.calls:
            if call.process.poll() is None:
                call.signal(signal.SIGKILL)
                call.process.wait(30)
        if ids := [job.id for job in self.unfinished()]:
            self.run("scancel", *ids)
            until(lambda: not self.unfinished(), "the queue empty", 60)


def until(
    true: Callable[[], object],
    what: str,
    timeout_s: float,
    hopeless: Callable[[], object] = lambda: False,
    call: SnakemakeCall | None = None,
) -> None:
    """Wait until a condition holds; AssertionError with Snakemake's words if it is hopeless or takes too long."""
    end = time.monotonic() + timeout_s
    while not true():
        said = f"\n{call.output[-4000:]}" if call else ""
        if hopeless():
            raise AssertionError(f"{what}: does not come any more{said}")
        if time.monotonic() > end:
            raise AssertionError(f"{what}: did not come within {timeout_s} s{said}")
        time.sleep(0.3)
