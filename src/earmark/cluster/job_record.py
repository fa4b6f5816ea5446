"""What a job leaves about itself beside its log: where and since when it runs, what Slurm gave it, how it ended."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earmark.artifacts import write_json
from earmark.cluster.gpu_use import GpuUse
from earmark.cluster.process import ProcessName, this_process
from earmark.cluster.squeue import SlurmError, job_by_id

_SUFFIX = ".job.json"
_KEPT_IDS = 100


@dataclass(frozen=True)
class Granted:
    """What Slurm gave a job. Points in time are seconds since 1970; None: not known, or without a limit.

    `cpus` are those of all `nodes`, `mem_mb` and `gres` those of each. `node` names them all.
    """

    job_id: str
    submitted_at: float | None
    started_at: float | None
    cpus: int
    mem_mb: float | None
    time_limit_min: float | None
    gres: str
    partition: str
    node: str
    nodes: int = 1

    @property
    def wait_s(self) -> float | None:
        """How long the job stood in the queue."""
        if self.submitted_at is None or self.started_at is None:
            return None
        return max(0.0, self.started_at - self.submitted_at)


@dataclass(frozen=True)
class JobRecord:
    """One attempt at a job. What is known at its end only is None while it runs, and stays so if it is killed.

    `outcome`: done, failed, or interrupted (Ctrl-C). `attempt` counts those that failed or were killed one after the
    other, this one included. `cpu_s` and `peak_mb` are what its processes used, as the system counts: CPU time of the
    job and of all that it waited for, and the largest resident memory of any one of them (not of several together).
    Processes on several nodes are started by Slurm, and not among them. `gpu` is of the job's first node.
    `earlier_ids` are those that earlier attempts had on Slurm, the oldest first.
    """

    process: ProcessName
    started_at: float
    attempt: int
    slurm: Granted | None
    ended_at: float | None = None
    outcome: str | None = None
    reason: str = ""
    cpu_s: float | None = None
    peak_mb: float | None = None
    gpu: GpuUse | None = None
    earlier_ids: list[str] = field(default_factory=list)


def record_path(log: Path) -> Path:
    """Where the record of the job with this log lies."""
    return log.with_suffix(_SUFFIX)


def recorded_logs(folder: Path) -> list[Path]:
    """The logs below a folder whose jobs left a record."""
    return [path.with_name(f"{path.name.removesuffix(_SUFFIX)}.log") for path in folder.rglob(f"*{_SUFFIX}")]


def begin_record(log: Path) -> JobRecord:
    """Write the record of this process's job, which begins now."""
    earlier = read_record(log)
    failed_before = earlier.attempt if earlier and earlier.outcome not in ("done", "interrupted") else 0
    ids = [*earlier.earlier_ids, *([earlier.slurm.job_id] if earlier.slurm else [])] if earlier else []
    record = JobRecord(this_process(), time.time(), failed_before + 1, _granted(), earlier_ids=ids[-_KEPT_IDS:])
    _write(log, record)
    return record


def end_record(log: Path, record: JobRecord, outcome: str, reason: str = "", gpu: GpuUse | None = None) -> None:
    """Write how it ended, and what it used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ended = dataclasses.replace(
        record,
        ended_at=time.time(),
        outcome=outcome,
        reason=reason,
        cpu_s=sum(part.ru_utime + part.ru_stime for part in used),
        # Not the sum: a child that was forked begins with its parent's peak.
        peak_mb=max(part.ru_maxrss for part in used) / 1024,
        gpu=gpu,
    )
    _write(log, ended)


def read_record(log: Path) -> JobRecord | None:
    """The record of the job with this log; None where there is none, or one that another version of Earmark wrote."""
    try:
        record: dict[str, Any] = json.loads(record_path(log).read_text(encoding="utf-8"))
        slurm = record.pop("slurm")
        process = ProcessName(**record.pop("process"))
        gpu = record.pop("gpu", None)
        return JobRecord(
            process=process, slurm=Granted(**slurm) if slurm else None, gpu=GpuUse(**gpu) if gpu else None, **record
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(log: Path, record: JobRecord) -> None:
    write_json(record_path(log), dataclasses.asdict(record))


def _granted() -> Granted | None:
    """What Slurm gave this job; None where Snakemake did not submit it (one machine, or an allocation by hand)."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    try:
        job = job_by_id(job_id)
    except SlurmError:  # a busy controller is no reason to lose the job: it runs on without these figures
        return Granted(job_id, None, None, 1, None, None, "", "", os.environ.get("SLURMD_NODENAME", ""))
    if job is None or not job.is_workflow_job:
        return None
    return Granted(
        job_id, job.submitted_at, job.started_at, job.cpus, job.mem_mb, job.time_limit_min, job.gres, job.partition,
        job.nodes, job.node_count,
    )  # fmt: skip
