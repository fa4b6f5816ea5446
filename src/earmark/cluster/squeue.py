"""What Slurm's squeue says of jobs. It needs no accounting, unlike sacct."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from earmark.errors import EarmarkError

# Not --json: it leaves out --me and --jobs (22.05) and gives the whole cluster's jobs, its form differs from version to
# version, and not every Slurm is built with it. The separator occurs in no name; the folder comes last all the same.
_SEPARATOR = "\x1f"
_FIELDS = ("%i", "%j", "%T", "%P", "%M", "%V", "%S", "%l", "%C", "%m", "%b", "%N", "%D", "%r", "%k", "%Z")
_TIMEOUT_S = 60
_NOT_STARTED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
# Of Snakemake's executor: the run's prefix, if any, and a UUID. `rule_` begins the comment.
_JOB_NAME = re.compile(r"(?:.+_)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class SlurmError(EarmarkError):
    """A command of Slurm is missing or failed."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue. Points in time are seconds since 1970; None: not known yet, or without a limit.

    `mem_mb` is as the job asked for it, per node; `cpus` are those of all nodes; `gres` is "gpu:1" or the like, or
    empty. `reason`: why it waits.
    """

    job_id: str
    name: str
    state: str
    partition: str
    elapsed_s: float
    submitted_at: float | None
    started_at: float | None
    time_limit_min: float | None
    cpus: int
    mem_mb: float | None
    gres: str
    nodes: str
    node_count: int
    reason: str
    comment: str
    folder: str

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.state in _NOT_STARTED

    @property
    def is_workflow_job(self) -> bool:
        """Whether Snakemake submitted it."""
        return self.comment.startswith("rule_") and _JOB_NAME.fullmatch(self.name) is not None


def workflow_jobs(folder: Path) -> list[QueuedJob]:
    """Your jobs that Snakemake submitted from `folder` and that wait or run. SlurmError if squeue does not answer."""
    own = folder.resolve()
    return [job for job in _ask("--me") if job.is_workflow_job and Path(job.folder).resolve() == own]


def job_by_id(job_id: str) -> QueuedJob | None:
    """The job, or None if it is no longer in the queue. SlurmError if squeue does not answer."""
    return next(iter(_ask("--jobs", job_id)), None)


def cancel(jobs: Sequence[QueuedJob], timeout_s: float = 300, every_s: float = 1) -> None:
    """Cancel jobs and return when they have left the queue. SlurmError if they have not within `timeout_s`."""
    if jobs:
        _run("scancel", *(job.job_id for job in jobs))
        ids = {job.job_id for job in jobs}
        left = wait_until_gone(ids, timeout_s, every_s)
        if left:
            raise SlurmError(
                f"jobs {', '.join(sorted(left))} are still in the queue {timeout_s:.0f} s after scancel: a node may be "
                "down; ask squeue again, or your administrator"
            )


def wait_until_gone(ids: set[str], timeout_s: float | None, every_s: float) -> set[str]:
    """Wait until none of the job ids is in the queue, or the time is up; return those that are left."""
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    while (left := _still_queued(ids)) and (ends is None or time.monotonic() < ends):
        time.sleep(every_s)
    return left


def _still_queued(ids: set[str]) -> set[str]:
    try:
        return ids & {job.job_id for job in _ask("--me")}
    except SlurmError as error:  # a controller that restarts ends no wait of hours
        logging.warning("%s; asking again", error)
        return ids


def parse(text: str) -> Iterator[QueuedJob]:
    """The jobs in what squeue printed for this module's fields, with times as seconds since 1970."""
    for line in text.splitlines():
        cells = line.split(_SEPARATOR, len(_FIELDS) - 1)
        if len(cells) != len(_FIELDS):
            raise SlurmError(f"squeue printed a line that was not asked for: {line!r}")
        job_id, name, state, partition, elapsed, submitted, started, limit, cpus, memory, gres, nodes = cells[:12]
        node_count, reason, comment, folder = cells[12:]
        yield QueuedJob(
            job_id, name, state, partition,
            elapsed_s=duration_s(elapsed) or 0.0,
            submitted_at=_point(submitted),
            started_at=None if state in _NOT_STARTED else _point(started),
            time_limit_min=None if (limit_s := duration_s(limit)) is None else limit_s / 60,
            cpus=int(cpus) if cpus.isdigit() else 1,
            mem_mb=megabytes(memory),
            gres="" if gres == "N/A" else gres.removeprefix("gres:").removeprefix("gres/"),
            nodes=nodes,
            node_count=int(node_count) if node_count.isdigit() else 1,
            reason="" if reason == "None" else reason,
            comment="" if comment == "(null)" else comment,
            folder=folder,
        )  # fmt: skip


def duration_s(text: str) -> float | None:
    """Slurm's [days-][[hours:]minutes:]seconds in seconds; None for UNLIMITED, INVALID and the like."""
    days, _, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (days and not days.isdigit()):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * int(days or 0))


def megabytes(text: str) -> float | None:
    """Slurm's memory (4000M, 1.5G, with n or c behind it for "a node" or "a CPU") in MB; None for 0, which is all."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text.strip())
    if found is None or float(found[1]) == 0:
        return None
    return float(found[1]) * _MEGABYTES[found[2] or "M"]


def _point(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _ask(*options: str) -> list[QueuedJob]:
    return list(parse(_run("squeue", "--noheader", "--format", _SEPARATOR.join(_FIELDS), *options)))


def _run(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise SlurmError(f"{program} is not on PATH: this machine knows no Slurm")
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{program} did not answer within {_TIMEOUT_S} s; is slurmctld up? Try again") from None
    if done.returncode:
        # A job that ended long ago is no error here: it is just not in the queue.
        if "Invalid job id" in done.stderr:
            return ""
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SlurmError(f"{program} failed: {said.removeprefix(f'{program}: ')}")
    return done.stdout
