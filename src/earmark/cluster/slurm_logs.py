"""What Slurm wrote of a job's attempts. Runs that share a folder share its places, too; records tell whose is whose."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from earmark.cluster.job_record import read_record
from earmark.cluster.plan import Plan, PlannedJob


def slurm_logs(job: PlannedJob, plan: Plan, folder: Path, others: Collection[str] = ()) -> list[Path]:
    """Slurm's logs of the job's attempts, the oldest first; none where no job goes to Slurm.

    Left out are those of the ids `others` and of all attempts at the same job of other runs that left a record. Of one
    that ended before its script began nobody knows which run it belongs to: it counts as this one's.
    """
    if plan.slurm_logs is None:
        return []
    not_ours = {*others, *_of_other_runs(job, folder)}
    logs = (folder / plan.slurm_logs / job.slurm_folder).glob("*.log")
    return sorted((log for log in logs if log.stem not in not_ours), key=lambda log: (log.stat().st_mtime, log.name))


def _of_other_runs(job: PlannedJob, folder: Path) -> set[str]:
    """The Slurm ids of the attempts at this job in the folder's other runs."""
    own = Path(job.log)  # logs/{run}/{stage}/{shard}.log
    if len(own.parts) < 3:
        return set()
    runs = (plan.parent for plan in folder.glob("logs/*/plan.json") if plan.parent.name != own.parts[1])
    records = (read_record(run.joinpath(*own.parts[2:])) for run in runs)
    return {
        job_id
        for record in records
        if record
        for job_id in (*record.earlier_ids, *([record.slurm.job_id] if record.slurm else ()))
    }
