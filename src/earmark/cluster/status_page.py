"""`earmark status`: the state of a run, a line a stage and a line for each job worth one."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from earmark.cluster.plan import Plan, plan_path, read_plan
from earmark.cluster.squeue import QueuedJob, SlurmError, workflow_jobs
from earmark.cluster.status import JobState, State, job_states

_SHOWN_JOBS = 20  # of each state
_COLUMNS = (State.DONE, State.RUNNING, State.QUEUED, State.WAITING, State.FAILED, State.UNKNOWN)


def print_status(run: str | None, *, folder: Path, every_job: bool, as_json: bool) -> None:
    """Print what the jobs of a run in Snakemake's `folder` do. InputError where the run has no plan."""
    path = plan_path(run, folder)
    plan = read_plan(path)
    queue, problem = ask_queue(plan, folder)
    states = job_states(plan, queue, folder)
    if as_json:
        for state in states:
            print(json.dumps(_json_row(state), ensure_ascii=False))
        return
    print(f"{path.parent.name}: {_snakemake_sentence(plan, states)}")
    if problem:
        print(f"  squeue cannot be asked ({problem}): what is queued and what runs on other machines is not known")
    _print_stages(states)
    for wanted in (State.RUNNING, State.UNKNOWN, State.QUEUED, State.FAILED):
        found = [state for state in states if state.state is wanted]
        shown = found if every_job else found[:_SHOWN_JOBS]
        for state in shown:
            print(_job_line(state))
        if len(found) > len(shown):
            print(f"  and {len(found) - len(shown)} more {wanted}; --all shows them")


def ask_queue(plan: Plan, folder: Path) -> tuple[list[QueuedJob] | None, str]:
    """The run's jobs in Slurm's queue, and why it could not be asked. Nothing is asked where no job goes to Slurm."""
    if plan.slurm_logs is None:
        return [], ""
    try:
        return workflow_jobs(folder), ""
    except SlurmError as error:
        return None, str(error)


def clock(seconds: float | None) -> str:
    """0:03:21, or 1d 02:03:04 from a day on."""
    if seconds is None:
        return "-"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"


def _snakemake_sentence(plan: Plan, states: Sequence[JobState]) -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(plan.started_at))
    name = f"process {plan.snakemake.pid} on {plan.snakemake.host}"
    if plan.outcome and plan.ended_at:
        took = clock(plan.ended_at - plan.started_at)
        if plan.outcome == "done":
            what = "all that was asked for is made"
        elif any(state.state is State.FAILED for state in states):
            what = "some jobs failed"
        else:  # Ctrl-C, or jobs that Slurm refused: they leave no trace of their own
            what = f"it ended early, no job left word of a failure; why stands in {plan.snakemake_log or 'its output'}"
        return f"Snakemake ended after {took}: {what}; it was started {started}"
    if plan.snakemake.running:
        return f"Snakemake runs ({name}), for {clock(time.time() - plan.started_at)}"
    if not plan.snakemake.is_here:
        return f"Snakemake was started {started} as {name}; whether it still runs cannot be seen from here"
    return f"Snakemake is gone without an end ({name}, started {started}); `earmark resume` takes the run up again"


def _print_stages(states: Sequence[JobState]) -> None:
    counts: dict[str, Counter[State]] = {}
    for state in states:
        counts.setdefault(state.job.stage, Counter())[state.state] += 1
    columns = [column for column in _COLUMNS if column is not State.UNKNOWN or any(n[column] for n in counts.values())]
    width = max((len(stage) for stage in counts), default=5)
    print(f"  {'stage':<{width}}" + "".join(f"{column:>12}" for column in columns))
    for stage, count in counts.items():
        cells = [f"{count[State.DONE]} of {count.total()}", *(str(count[column] or "-") for column in columns[1:])]
        print(f"  {stage:<{width}}" + "".join(f"{cell:>12}" for cell in cells))


def _job_line(state: JobState) -> str:
    parts = [f"  {state.state:<8} {state.job.label}"]
    if state.job_id:
        parts.append(f"job {state.job_id}")
    if state.node:
        parts.append(f"on {state.node}")
    if state.elapsed_s is not None:
        parts.append(f"for {clock(state.elapsed_s)}")
    if state.attempt > 1:
        parts.append(f"attempt {state.attempt}")
    if state.log:
        parts.append(state.log)
    line = ", ".join(parts)
    return f"{line}\n           {state.detail}" if state.detail else line


def _json_row(state: JobState) -> dict[str, object]:
    row = dataclasses.asdict(state)
    job = row.pop("job")
    return {"stage": job["stage"], "rule": job["rule"], "wildcards": job["wildcards"], **row}
