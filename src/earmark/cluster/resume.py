"""`earmark resume`: take up a run whose Snakemake was killed, without doing twice what its jobs still do.

A killed Snakemake leaves its lock and, what is worse, its jobs: they live on, and a second Snakemake knows nothing of
them and would run the same ones beside them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from earmark.cluster.job_record import read_record, recorded_logs
from earmark.cluster.plan import Plan, readable_plan
from earmark.cluster.process import HOST, ProcessName, name_of
from earmark.cluster.squeue import QueuedJob, SlurmError, cancel, wait_until_gone, workflow_jobs
from earmark.errors import EarmarkError

_EVERY_S = 2.0
_SLURM_LOGS = ("logs/slurm", ".snakemake/slurm_logs")  # of the profile, and of Snakemake itself
_GRACE_S = 30.0  # between asking a process to end and ending it
# Snakemake's options that make it run jobs whose outputs are there; repeated, they would undo what the run has done.
_FORCING = ("-R", "--forcerun", "-f", "--force", "-F", "--forceall")


class NotResumed(EarmarkError):
    """The run cannot be taken up as things stand; the message says what to do."""


@dataclass(frozen=True)
class LivingJobs:
    """What an earlier Snakemake left: jobs in Slurm's queue, and processes on this machine."""

    queued: list[QueuedJob]
    local: list[ProcessName]

    def __bool__(self) -> bool:
        return bool(self.queued or self.local)

    def lines(self) -> list[str]:
        """One line a job."""
        return [
            *(
                f"job {job.job_id}: {job.comment.removeprefix('rule_').replace('_wildcards_', ' ')}, "
                f"{job.state.lower()}{f' on {job.nodes}' if job.nodes else ''}"
                for job in self.queued
            ),
            *(f"process {process.pid} on this machine" for process in self.local),
        ]


def resume(
    folder: Path, arguments: Sequence[str], *, mode: str, snakemake_is_gone: bool, forget_plan: bool = False
) -> None:
    """Make sure that no job of an earlier Snakemake in `folder` is left, unlock, and become Snakemake.

    `mode` is what happens to jobs that live on: refuse, cancel or wait. `arguments` are Snakemake's; without any, those
    of the last call. With `forget_plan`, plans that cannot be read count as none. NotResumed if jobs live on and are to
    be kept, or if another Snakemake works here or may do so; SlurmError if the queue cannot be asked.
    """
    folder = folder.resolve()  # the working directory changes below
    plans, forgotten = _plans(folder, forget_plan)
    _refuse_beside_another(folder, plans, snakemake_is_gone)
    command = [sys.executable, "-m", "snakemake", *(arguments or _last_arguments(plans, forgotten))]
    living = _living_jobs(folder, plans, forgotten)
    if living and mode == "refuse":
        listed = "\n  ".join(living.lines())
        raise NotResumed(
            f"jobs of an earlier Snakemake live on:\n  {listed}\nA new one would run them a second time. "
            "`earmark resume --wait` waits for their ends, `earmark resume --cancel` cancels them"
        )
    if living:
        print(f"jobs of an earlier Snakemake, to be {'cancelled' if mode == 'cancel' else 'waited for'}:", flush=True)
        for line in living.lines():
            print(f"  {line}", flush=True)
        _end(living) if mode == "cancel" else _wait(living)
    # Again, after what may have been hours: unlocking takes a living Snakemake's lock away.
    _refuse_beside_another(folder, plans, snakemake_is_gone)
    os.chdir(folder)
    if any((folder / ".snakemake/locks").glob("*.lock")):
        print("unlocking", flush=True)
        if subprocess.run([*command, "--unlock"], check=False).returncode:
            raise NotResumed("`snakemake --unlock` failed; what it says stands above")
    print(f"starting: snakemake {' '.join(command[3:])}", flush=True)
    os.execv(command[0], command)  # noqa: S606  # signals of the terminal are Snakemake's from here on


def _plans(folder: Path, forget: bool) -> tuple[list[Plan], list[Path]]:
    """The plans in a folder, the oldest first, and those that cannot be read; NotResumed unless they may be forgotten.

    A plan says which process of which machine its Snakemake is: without it, one on another machine is not seen.
    """
    found = {path: readable_plan(path) for path in sorted(folder.glob("logs/*/plan.json"))}
    unreadable = [path for path, plan in found.items() if plan is None]
    if unreadable and not forget:
        raise NotResumed(
            f"{unreadable[0]} is broken, or was written by another version of Earmark: which Snakemake it was is not "
            "known. If none works in this folder any more, on any machine, say --forget-plan; jobs in the queue and "
            "on this machine are looked for all the same"
        )
    return sorted((plan for plan in found.values() if plan), key=lambda plan: plan.started_at), unreadable


def _refuse_beside_another(folder: Path, plans: Sequence[Plan], is_gone: bool) -> None:
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        if _is_snakemake(process.info["cmdline"] or []) and process.info["cwd"] == str(folder):
            raise NotResumed(
                f"Snakemake works in this folder (process {process.pid} on {HOST}); wait for its end, or interrupt it "
                f"with `kill -INT {process.pid}`, which cancels its jobs"
            )
    for plan in plans:
        if plan.ended_at is None and plan.snakemake.running:
            raise NotResumed(
                f"Snakemake works for this folder (process {plan.snakemake.pid} on {HOST}); wait for its end, or "
                f"interrupt it with `kill -INT {plan.snakemake.pid}`, which cancels its jobs"
            )
    locked = any((folder / ".snakemake/locks").glob("*.lock"))
    for plan in plans:
        if plan.ended_at is None and locked and not plan.snakemake.is_here and not is_gone:
            there = f"process {plan.snakemake.pid} on {plan.snakemake.host}"
            raise NotResumed(
                f"a Snakemake that worked here is {there}, and from here it cannot be seen whether it still works. "
                f"Look there (`ps -p {plan.snakemake.pid}`), or run `earmark resume` there; if it is gone, say "
                "--snakemake-is-gone"
            )


def _is_snakemake(command: Sequence[str]) -> bool:
    """Whether a command line is a Snakemake that plans and locks, not one inside a job (that gets --nolock)."""
    names = [Path(word).name for word in command[:2]]
    started = "snakemake" in names or list(command[1:3]) == ["-m", "snakemake"]
    return started and "--nolock" not in command and "--unlock" not in command


def _living_jobs(folder: Path, plans: Sequence[Plan], forgotten: Sequence[Path]) -> LivingJobs:
    try:
        queued = workflow_jobs(folder)
    except SlurmError:
        to_slurm = any(plan.slurm_logs is not None for plan in plans)
        if to_slurm or (forgotten and any((folder / logs).is_dir() for logs in _SLURM_LOGS)):
            raise
        queued = []  # nothing was ever submitted from here
    logs = {folder / job.log for plan in plans for job in [*plan.jobs, *plan.earlier] if job.log}
    logs |= {log for path in forgotten for log in recorded_logs(path.parent)}
    records = [record for log in sorted(logs) if (record := read_record(log))]
    local = [record.process for record in records if record.slurm is None and record.process.running]
    known = {process.pid for process in local}
    ids = {job.job_id for job in queued}
    return LivingJobs(queued, local + [process for process in _job_processes(folder, ids) if process.pid not in known])


def _job_processes(folder: Path, queued_ids: set[str]) -> list[ProcessName]:
    """Scripts of jobs in `folder` and the Snakemakes around them: a script that still imports has no record yet.

    Not those of jobs in Slurm's queue, which may run on this machine as well.
    """
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid not in own
                and process.uids().real == os.getuid()
                and _is_job(process.cmdline())
                and process.cwd() == str(folder)
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("SLURM_JOB_ID") not in queued_ids
            ):
                found.append(name_of(process))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _is_job(command: Sequence[str]) -> bool:
    """Whether a command line is Python with one of Snakemake's scripts, or the Snakemake inside a job."""
    is_python = bool(command) and Path(command[0]).name.startswith("python")
    return is_python and ("--nolock" in command or any(".snakemake/scripts/" in word for word in command))


def _last_arguments(plans: Sequence[Plan], forgotten: Sequence[Path]) -> list[str]:
    if forgotten:
        raise NotResumed(
            f"{forgotten[0]} cannot be read, and the last call may be the one in there. Say behind -- what Snakemake "
            "is to be started with"
        )
    if not plans:
        raise NotResumed("no run was started here that could be taken up; start Snakemake itself")
    arguments = plans[-1].arguments
    if plans[-1].elsewhere:
        raise NotResumed(
            "the last call was told its folder (--directory), and its relative paths count from another one: snakemake "
            f"{shlex.join(arguments)}. Say behind -- what Snakemake is to be started with, with paths "
            "that count from here"
        )
    if forcing := [word for word in arguments if word.split("=")[0] in _FORCING]:
        raise NotResumed(
            f"the last call had {forcing[0]}, which would do again what is done: snakemake {' '.join(arguments)}. Say "
            "behind -- what Snakemake is to be started with"
        )
    return arguments


def _end(living: LivingJobs) -> None:
    _end_processes(living.local)
    cancel(living.queued)


def _end_processes(names: Sequence[ProcessName]) -> None:
    """End jobs' processes with those that they started, which would otherwise go on working for nobody."""
    family = {member for name in names for member in _with_children(name)}
    for member in family:
        _signal(member, kill=False)
    for member in _left_after(family, _GRACE_S):
        _signal(member, kill=True)
    _left_after(family, _GRACE_S)


def _with_children(name: ProcessName) -> list[psutil.Process]:
    try:
        process = name.find()
        return [process, *process.children(recursive=True)] if process else []
    except psutil.NoSuchProcess:
        return []


def _left_after(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that have not ended in that time. One that its parent has not buried yet has ended."""
    ends = time.monotonic() + timeout_s
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < ends:
        time.sleep(0.1)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


def _wait(living: LivingJobs) -> None:
    wait_until_gone({job.job_id for job in living.queued}, None, 5 * _EVERY_S) if living.queued else None
    while any(process.running for process in living.local):
        time.sleep(_EVERY_S)
