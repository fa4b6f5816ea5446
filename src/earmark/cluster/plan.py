"""What the last call of Snakemake was asked to make: written by the workflow as it starts, read by who watches it."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.artifacts import write_json
from earmark.cluster.process import ProcessName, this_process
from earmark.errors import InputError

_ASKED = ("mem_mb", "runtime", "gpu", "gres")
# Snakemake's options whose values are paths that count from the folder that it is started in.
_PATHS = ("-s", "--snakefile", "-d", "--directory", "--configfile", "--configfiles", "--profile", "--workflow-profile")
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

    `earlier` are jobs of calls before it that it did not look at. `slurm_logs` is None where no job goes to Slurm;
    `slurm_run` is the name that all jobs of the call have there. `elsewhere`: Snakemake was told its folder
    (--directory), and paths in its `arguments` count from another one, which it does not tell.
    """

    snakemake: ProcessName
    arguments: list[str]
    snakemake_log: str
    slurm_logs: str | None
    started_at: float
    jobs: list[PlannedJob]
    earlier: list[PlannedJob]
    ended_at: float | None = None
    outcome: str | None = None
    slurm_run: str | None = None
    elsewhere: bool = False


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


def slurm_run_name(scheduler: Any) -> str | None:
    """The name that Snakemake's executor gives all jobs of this call in Slurm; None where jobs do not go to Slurm."""
    # Snakemake has no public way to it; without the name, jobs are told apart by their comment alone.
    name = getattr(getattr(scheduler, "_executor", None), "run_uuid", None)
    return None if name is None else str(name)


def plan_path(run: str | None, folder: Path) -> Path:
    """Where the plan of a run lies in the folder that Snakemake works in; None: of the run that was started last."""
    plans = list(folder.glob("logs/*/plan.json"))
    if run is None and plans:
        # Not by the files' times: a plan is written again when its call ends.
        return max(plans, key=lambda path: plan.started_at if (plan := readable_plan(path)) else 0.0)
    return folder / "logs" / (run or "demo") / "plan.json"


def write_plan(
    path: Path,
    jobs: Iterable[PlannedJob],
    *,
    snakemake_log: str,
    slurm_logs: str | None,
    slurm_run: str | None,
    elsewhere: bool,
) -> None:
    """Write the plan of the calling Snakemake. Jobs of an earlier plan that are not in this one are kept as such."""
    planned = list(jobs)
    logs = {job.log for job in planned}
    before = readable_plan(path)
    earlier = [job for job in [*before.jobs, *before.earlier] if job.log not in logs] if before else []
    plan = Plan(
        this_process(), sys.argv[1:], snakemake_log, slurm_logs, time.time(), planned, earlier,
        slurm_run=slurm_run, elsewhere=elsewhere and not _all_absolute(sys.argv[1:]),
    )  # fmt: skip
    _write(path, plan)


def _all_absolute(arguments: Sequence[str]) -> bool:
    """Whether all paths count from nowhere. Without a Snakefile named, the one of the folder of the start is meant."""
    option, named = "", []
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            named += [(option, value)] if value else []
        else:
            named.append((option, argument))
    paths = [(option, value) for option, value in named if option in _PATHS]
    snakefile = any(option in ("-s", "--snakefile") for option, _ in paths)
    return snakefile and all(Path(value).is_absolute() for _, value in paths)


def end_plan(path: Path, outcome: str) -> None:
    """Write how the call ended, if the plan is the calling Snakemake's: another may have begun in this folder since."""
    plan = readable_plan(path)
    if plan is not None and plan.snakemake.is_caller:
        _write(path, dataclasses.replace(plan, ended_at=time.time(), outcome=outcome))


def _write(path: Path, plan: Plan) -> None:
    jobs = {name: [vars(job) for job in getattr(plan, name)] for name in ("jobs", "earlier")}
    write_json(path, {**vars(plan), "snakemake": vars(plan.snakemake), **jobs})


def readable_plan(path: Path) -> Plan | None:
    """The plan; None where there is none, or one that another version of Earmark wrote, which stops nobody."""
    try:
        return read_plan(path) if path.exists() else None
    except InputError as error:
        logging.warning("%s", error)
        return None


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
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: not a plan that this version of Earmark wrote; the next call of Snakemake does"
        ) from None
