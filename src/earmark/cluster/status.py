"""What each job of a run does: from the plan, the jobs' records, the artifacts and, where there is Slurm, its queue.

No one of them is enough. Artifacts know nothing of what runs, squeue forgets what has ended, and a job that was killed
leaves a record without an end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from earmark.cluster.job_record import JobRecord, read_record
from earmark.cluster.plan import Plan, PlannedJob
from earmark.cluster.slurm_logs import slurm_logs
from earmark.cluster.squeue import QueuedJob

_CLOCK_SLACK_S = 2  # between this machine's clock, the nodes' and the file server's
_TAIL_BYTES = 16_384


class State(StrEnum):
    """`waiting`: not submitted yet. `queued`: Slurm has it. `unknown`: Slurm ran it when last heard of."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    WAITING = "waiting"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobState:
    """A job and what it does. `detail`: why it waits or failed. `elapsed_s`: of a running job, or in the queue."""

    job: PlannedJob
    state: State
    job_id: str = ""
    node: str = ""
    elapsed_s: float | None = None
    detail: str = ""
    log: str = ""  # the log that tells more
    attempt: int = 1


def job_states(plan: Plan, queue: Iterable[QueuedJob] | None, folder: Path) -> list[JobState]:
    """The state of every job of the plan. `queue` is None where squeue cannot be asked; `folder` is Snakemake's."""
    # Another run in this folder has jobs with the same comments; the name is the call's own.
    ours = None if queue is None else [job for job in queue if plan.slurm_run in (None, job.name)]
    queued = None if ours is None else {job.comment: job for job in ours}
    others = {job.job_id for job in queue or ()} - {job.job_id for job in ours or ()}
    ended = plan.ended_at is not None or (plan.snakemake.is_here and not plan.snakemake.running)
    return [_job_state(job, plan, queued, others, ended, folder) for job in plan.jobs]


def _job_state(
    job: PlannedJob,
    plan: Plan,
    queued: dict[str, QueuedJob] | None,
    others: set[str],
    ended: bool,
    folder: Path,
) -> JobState:
    record = read_record(folder / job.log) if job.log else None
    attempt = record.attempt if record else 1
    in_queue = (queued or {}).get(job.slurm_comment)
    if in_queue and in_queue.waits:
        waited_s = None if in_queue.submitted_at is None else time.time() - in_queue.submitted_at
        return JobState(job, State.QUEUED, in_queue.job_id, "", waited_s, in_queue.reason, attempt=attempt)
    if in_queue:
        return JobState(
            job, State.RUNNING, in_queue.job_id, in_queue.nodes, in_queue.elapsed_s, log=job.log, attempt=attempt
        )

    ours = record is not None and (not job.due or record.started_at >= plan.started_at - _CLOCK_SLACK_S)
    job_id, node = _where(record)
    if record and ours and record.outcome is None:
        if record.slurm is None and (record.process.running or not record.process.is_here):
            elapsed_s = time.time() - record.started_at
            return JobState(job, State.RUNNING, "", node, elapsed_s, log=job.log, attempt=attempt)
        if record.slurm and queued is None:
            return JobState(job, State.UNKNOWN, job_id, node, detail="squeue does not answer", attempt=attempt)
    if _made(job, record if ours else None, plan, folder):
        return JobState(job, State.DONE, job_id, node, attempt=attempt)
    # A failure of an earlier call counts until Snakemake has taken the job up again, or has ended without doing so.
    if record and (ours or ended) and record.outcome == "failed":
        return JobState(job, State.FAILED, job_id, node, detail=record.reason, log=job.log, attempt=attempt)
    if record and (ours or ended) and record.outcome is None and not record.process.running:
        return _killed(job, record, plan, folder)
    slurm_log = next(reversed(slurm_logs(job, plan, folder, others)), None)
    started = plan.started_at - _CLOCK_SLACK_S
    if slurm_log and not ours and slurm_log.stat().st_mtime >= started and queued is not None:
        detail = f"ended before its script began: {last_line(slurm_log)}"
        return JobState(job, State.FAILED, slurm_log.stem, "", detail=detail, log=str(slurm_log))
    return JobState(job, State.WAITING)


def _where(record: JobRecord | None) -> tuple[str, str]:
    if record is None:
        return "", ""
    return (record.slurm.job_id, record.slurm.node) if record.slurm else ("", record.process.host)


def _made(job: PlannedJob, record: JobRecord | None, plan: Plan, folder: Path) -> bool:
    """Whether the outputs are there, and made by this call where it was to make them."""
    outputs = [folder / output for output in job.outputs]
    if not all(output.exists() for output in outputs):
        return False
    if not job.due:
        return True
    if record is not None:
        return record.outcome == "done"
    return all(output.stat().st_mtime >= plan.started_at - _CLOCK_SLACK_S for output in outputs)


def _killed(job: PlannedJob, record: JobRecord, plan: Plan, folder: Path) -> JobState:
    job_id, node = _where(record)
    log, detail = job.log, "killed, it could not say why"
    if record.slurm and (logs := slurm_logs(job, plan, folder)):
        slurm_log = next((log for log in logs if log.stem == record.slurm.job_id), logs[-1])
        log, detail = str(slurm_log), f"killed (memory, time, a lost node, or scancel): {last_line(slurm_log)}"
    return JobState(job, State.FAILED, job_id, node, detail=detail, log=log, attempt=record.attempt)


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    # Slurm says last that it killed a step; what Snakemake adds behind that tells nobody anything.
    told = [line for line in lines if line.strip()]
    blamed = [line for line in told if "slurmstepd" in line or "Killed" in line or "oom" in line.lower()]
    return (blamed or told or [""])[-1].strip()
