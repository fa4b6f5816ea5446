"""What the last call of Snakemake was asked to make: written by the workflow as it starts, read by who watches it."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.artifacts import write_json
from earmark.cluster.process import ProcessName, this_process
from earmark.errors import InputError

_ASKED = ("mem_mb", "runtime", "gpu", "gres")
# A rule's stage is the name of its file, but for these.
_STAGE = {"splits": "merge", "funnel": "merge"}


@dataclass(frozen=True)
class PlannedJob:
    """A job of the workflow.

    `due`: the call was to run it; otherwise its outputs were up to date. `asked` holds threads, mem_mb, runtime
    (minutes) and, where a GPU is asked for, gpu or gres, as for a first attempt.
    """

    rule: str
    stage: str
    wildcards: dict[str, str]
    outputs: list[str]
    log: str
    benchmark: str
    due: bool
    asked: dict[str, Any]

    @property
    def label(self) -> str:
        """`align_shard 0003`."""
        return " ".join([self.rule, *self.wildcards.values()])

    @property
    def slurm_folder(self) -> str:
        """The folder of Slurm's logs of this job, below Snakemake's folder of such logs."""
        return "/".join([f"rule_{self.rule}", *self._wildcards])

    @property
    def slurm_comment(self) -> str:
        """What Snakemake's executor gives Slurm as the job's comment (get_job_wildcards in its source)."""
        return "_wildcards_".join([f"rule_{self.rule}", *self._wildcards])

    @property
    def _wildcards(self) -> list[str]:
        return ["_".join(self.wildcards.values()).replace("/", "_")] if self.wildcards else []


@dataclass(frozen=True)
class Plan:
    """A call of Snakemake. Points in time are seconds since 1970; `outcome` (done, failed) is None until it ends.

    `earlier` are jobs of calls before it that it did not look at. `slurm_logs` is None where no job goes to Slurm.
    """

    folder: str
    snakemake: ProcessName
    arguments: list[str]
    snakemake_log: str
    slurm_logs: str | None
    started_at: float
    jobs: list[PlannedJob]
    earlier: list[PlannedJob]
    ended_at: float | None = None
    outcome: str | None = None


def planned_jobs(dag: Any) -> Iterator[PlannedJob]:
    """The jobs of Snakemake's DAG that write something: a stage's before those of the stages that read it."""
    for level in dag.toposorted():
        for job in sorted(level, key=lambda job: [job.rule.name, *job.wildcards_dict.values()]):
            if job.output:
                yield _planned_job(job, dag.needrun(job))


def _planned_job(job: Any, due: bool) -> PlannedJob:
    asked = {name: job.resources.get(name) for name in _ASKED}
    return PlannedJob(
        rule=job.rule.name,
        stage=_STAGE.get(job.rule.name, Path(str(job.rule.snakefile)).stem),
        wildcards=dict(job.wildcards_dict),
        outputs=[str(path) for path in job.output],
        log=str(job.log[0]) if job.log else "",
        benchmark=str(job.benchmark or ""),
        due=bool(due),
        # What Snakemake works out from inputs that are not there yet has no value.
        asked={"threads": job.threads, **{name: value for name, value in asked.items() if type(value) in (int, str)}},
    )


def slurm_log_folder(executor_settings: Any) -> str | None:
    """Where Slurm's logs go, by the settings of Snakemake's executor; None where jobs do not go to Slurm."""
    if not hasattr(executor_settings, "logdir"):
        return None
    return str(executor_settings.logdir or ".snakemake/slurm_logs")


def plan_path(run: str | None, folder: Path) -> Path:
    """Where the plan of a run lies in the folder that Snakemake works in; None: of the run that was started last."""
    plans = sorted(folder.glob("logs/*/plan.json"), key=lambda path: path.stat().st_mtime)
    if run is None and plans:
        return plans[-1]
    return folder / "logs" / (run or "demo") / "plan.json"


def write_plan(path: Path, jobs: Iterable[PlannedJob], *, snakemake_log: str, slurm_logs: str | None) -> None:
    """Write the plan of the calling Snakemake. Jobs of an earlier plan that are not in this one are kept as such."""
    planned = list(jobs)
    logs = {job.log for job in planned}
    before = read_plan(path) if path.exists() else None
    earlier = [job for job in [*before.jobs, *before.earlier] if job.log not in logs] if before else []
    plan = Plan(str(Path.cwd()), this_process(), sys.argv[1:], snakemake_log, slurm_logs, time.time(), planned, earlier)
    _write(path, plan)


def end_plan(path: Path, outcome: str) -> None:
    """Write how the call ended."""
    _write(path, dataclasses.replace(read_plan(path), ended_at=time.time(), outcome=outcome))


def _write(path: Path, plan: Plan) -> None:
    jobs = {name: [vars(job) for job in getattr(plan, name)] for name in ("jobs", "earlier")}
    write_json(path, {**vars(plan), "snakemake": vars(plan.snakemake), **jobs})


def read_plan(path: Path) -> Plan:
    """Read a plan. InputError if there is none."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        for name in ("jobs", "earlier"):
            plan[name] = [PlannedJob(**job) for job in plan[name]]
        return Plan(snakemake=ProcessName(**plan.pop("snakemake")), **plan)
    except FileNotFoundError:
        known = sorted(found.parent.name for found in path.parent.parent.glob("*/plan.json"))
        runs = f"runs that have one here: {', '.join(known)}" if known else "no run here has one"
        raise InputError(
            f"{path}: no plan of this run ({runs}). Snakemake writes it when it starts with something to do; say --run "
            "NAME, in the folder that Snakemake is started in"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(
            f"{path}: not a plan that this version of Earmark wrote; the next call of Snakemake does"
        ) from None
