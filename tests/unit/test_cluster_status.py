"""What jobs do, told from their records, artifacts and the queue. The jobs are real processes under `job_log`."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from earmark.artifacts import write_json
from earmark.cluster.job_record import Granted, JobRecord, begin_record, read_record, record_path
from earmark.cluster.plan import Plan, PlannedJob, plan_path
from earmark.cluster.process import this_process
from earmark.cluster.squeue import QueuedJob
from earmark.cluster.status import State, job_states
from earmark.cluster.status_page import print_status

ELSEWHERE = dataclasses.replace(this_process(), host="another.host")


@pytest.fixture
def job():
    return PlannedJob(
        "align_shard", "align", {"shard": "0000"}, ["0000.parquet"], "logs/0000.log", "logs/0000.tsv", True, {}
    )


@pytest.fixture
def plan(job, tmp_path):
    return Plan(this_process(), [], "", "logs/slurm", time.time(), [job], [])


def start(folder, body):
    """A job's script."""
    log = folder / "logs/0000.log"
    code = (
        f"from earmark.logs import job_log\nfrom earmark.errors import InputError\nwith job_log({str(log)!r}):\n {body}"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder)


def until_record(folder, timeout_s=30):
    """The record of a job that has written its output."""
    end = time.monotonic() + timeout_s
    while (record := read_record(folder / "logs/0000.log")) is None or not (folder / "0000.parquet").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return record


def only(plan, queue, folder):
    (state,) = job_states(plan, queue, folder)
    return state


def queued(state, comment, reason="", run="earmark_x"):
    return QueuedJob("7", run, state, "cpu", 61.0, time.time() - 5, None, 60, 1, 1000, "", "c1", 1, reason, comment, "")


def test_a_job_on_this_machine_runs_then_is_done(plan, tmp_path):
    assert only(plan, [], tmp_path).state is State.WAITING
    process = start(tmp_path, "open('0000.parquet', 'w').close(); __import__('time').sleep(600)")
    process_runs = until_record(tmp_path)
    running = only(plan, [], tmp_path)
    assert (running.state, running.node) == (State.RUNNING, process_runs.process.host)
    process.kill()
    process.wait()

    assert start(tmp_path, "pass").wait() == 0
    assert only(plan, [], tmp_path).state is State.DONE


def test_a_killed_job_is_failed_although_its_outputs_stand_there(plan, tmp_path):
    process = start(tmp_path, "open('0000.parquet', 'w').close(); __import__('time').sleep(600)")
    until_record(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = only(plan, [], tmp_path)
    assert (state.state, state.detail) == (State.FAILED, "killed, it could not say why")


def test_a_failed_job_says_why_and_its_attempts_are_counted(plan, tmp_path):
    for attempt in (1, 2):
        assert start(tmp_path, "raise InputError('a.tsv:3: mend it')").wait() == 1
        state = only(plan, [], tmp_path)
        assert (state.state, state.detail, state.attempt) == (State.FAILED, "a.tsv:3: mend it", attempt)
    assert start(tmp_path, "pass").wait() == 0
    assert read_record(tmp_path / "logs/0000.log").attempt == 3
    assert start(tmp_path, "pass").wait() == 0
    assert read_record(tmp_path / "logs/0000.log").attempt == 1


def test_the_queue_overrules_what_the_attempt_before_left(plan, job, tmp_path):
    assert start(tmp_path, "raise InputError('first attempt')").wait() == 1
    comment = "rule_align_shard_wildcards_0000"
    waiting = only(plan, [queued("PENDING", comment, "Resources")], tmp_path)
    assert (waiting.state, waiting.job_id, waiting.detail) == (State.QUEUED, "7", "Resources")
    running = only(plan, [queued("RUNNING", comment)], tmp_path)
    assert (running.state, running.node, running.elapsed_s) == (State.RUNNING, "c1", 61)
    assert only(plan, [queued("PENDING", "rule_align_shard_wildcards_0001")], tmp_path).state is State.FAILED


def test_jobs_of_another_run_in_the_folder_are_not_taken_for_this_ones(plan, tmp_path, monkeypatch):
    ours = dataclasses.replace(
        plan, slurm_run="earmark_x", jobs=[dataclasses.replace(plan.jobs[0], log="logs/talks/align/0000.log")]
    )
    comment = "rule_align_shard_wildcards_0000"
    slurm_log = tmp_path / "logs/slurm/rule_align_shard/0000/7.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("of the other run\n")
    assert only(ours, [queued("RUNNING", comment)], tmp_path).state is State.RUNNING
    assert only(ours, [queued("RUNNING", comment, run="earmark_y")], tmp_path).state is State.WAITING
    # Its job has ended; its record says whose the log is.
    other = JobRecord(ELSEWHERE, time.time(), 1, Granted("7", 0.0, 1.0, 1, 1000, 60, "", "cpu", "c1"))
    path = record_path(tmp_path / "logs/other/align/0000.log")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dataclasses.asdict(other)))
    (tmp_path / "logs/other/plan.json").touch()
    assert only(ours, [], tmp_path).state is State.WAITING
    # It is tried again, under another id: the log of the first attempt is still its own.
    again = dataclasses.replace(other.slurm, job_id="9")
    monkeypatch.setattr("earmark.cluster.job_record._granted", lambda: again)
    assert begin_record(path.with_name("0000.log")).earlier_ids == ["7"]
    assert only(ours, [], tmp_path).state is State.WAITING
    slurm_log.with_name("8.log").write_text("nobody's: it ended before its script began\n")
    assert only(ours, [], tmp_path).state is State.FAILED


def test_an_interrupted_job_waits_and_the_page_calls_no_job_failed(plan, tmp_path, capsys):
    assert start(tmp_path, "raise KeyboardInterrupt").wait() == 130
    assert only(plan, [], tmp_path).state is State.WAITING
    ended = dataclasses.replace(
        plan, slurm_logs=None, snakemake_log=".snakemake/log/x.log", ended_at=time.time(), outcome="failed"
    )
    write_json(plan_path("talks", tmp_path), dataclasses.asdict(ended))
    print_status("talks", folder=tmp_path, every_job=False, as_json=False)
    said = capsys.readouterr().out
    assert "ended early" in said
    assert ".snakemake/log/x.log" in said
    assert "some jobs failed" not in said


@pytest.mark.parametrize(("queue", "state"), [([], State.FAILED), (None, State.UNKNOWN)])
def test_a_job_that_left_slurm_without_a_word_has_failed_unless_slurm_cannot_be_asked(plan, tmp_path, queue, state):
    given = Granted("7", 0.0, 1.0, 1, 1000, 60, "", "cpu", "c1")
    record = JobRecord(ELSEWHERE, time.time(), 1, given)
    (tmp_path / "logs").mkdir()
    record_path(tmp_path / "logs/0000.log").write_text(json.dumps(dataclasses.asdict(record)))
    slurm_log = tmp_path / "logs/slurm/rule_align_shard/0000/7.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("slurmstepd: error: *** JOB 7 CANCELLED DUE TO TIME LIMIT ***\nshutting down\n")
    found = only(plan, queue, tmp_path)
    assert (found.state, found.job_id) == (state, "7")
    assert ("TIME LIMIT" in found.detail) == (state is State.FAILED)


def test_outputs_of_an_earlier_call_do_not_count_where_this_one_makes_them_anew(plan, job, tmp_path):
    (tmp_path / "0000.parquet").touch()
    later = dataclasses.replace(plan, started_at=time.time() + 60)
    assert only(later, [], tmp_path).state is State.WAITING
    up_to_date = dataclasses.replace(later, jobs=[dataclasses.replace(job, due=False)])
    assert only(up_to_date, [], tmp_path).state is State.DONE


def test_a_job_that_died_before_its_script_began_has_failed(plan, tmp_path):
    slurm_log = tmp_path / "logs/slurm/rule_align_shard/0000/7.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("ModuleNotFoundError: No module named 'snakemake'\n")
    state = only(plan, [], tmp_path)
    assert (state.state, state.job_id) == (State.FAILED, "7")
    assert state.detail.endswith("No module named 'snakemake'")
