"""Logs that grow, are emptied or replaced while somebody reads them."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from earmark.artifacts import write_json
from earmark.cluster.plan import Plan, PlannedJob, plan_path
from earmark.cluster.process import this_process
from earmark.cluster.tail import FollowedLog, tail
from earmark.errors import InputError

EARMARK = str(Path(sys.executable).with_name("earmark"))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "logs/talks/align/0000.log"
    path.parent.mkdir(parents=True)
    job = PlannedJob("align_shard", "align", {"shard": "0000"}, ["x"], "logs/talks/align/0000.log", "", True, {})
    encode = dataclasses.replace(job, rule="encode", stage="train", log="logs/talks/encode/0000.log")
    plan = Plan(this_process(), [], "", "logs/slurm", time.time(), [job, encode], [])
    write_json(plan_path("talks", tmp_path), dataclasses.asdict(plan))
    return path


def add(path, text):
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_lines_come_when_they_are_whole(log):
    follower = FollowedLog(log)
    assert list(follower.new_lines()) == []
    add(log, "one\ntw")
    assert list(follower.new_lines()) == ["one"]
    add(log, "o\n")
    assert list(follower.new_lines()) == ["two"]


def test_a_replaced_log_is_read_to_its_end_before_the_new_one(log):
    add(log, "first attempt\n")
    follower = FollowedLog(log)
    assert list(follower.new_lines()) == ["first attempt"]
    add(log, "last words\nbroken o")
    log.unlink()
    add(log, "second attempt\n")
    assert list(follower.new_lines()) == ["last words", "broken o", "second attempt"]


@pytest.mark.parametrize("idle", [False, True])
def test_a_log_that_was_emptied_and_has_grown_beyond_its_old_length_is_read_from_its_start(log, idle):
    add(log, "10:00 old\n")
    follower = FollowedLog(log)
    assert list(follower.new_lines()) == ["10:00 old"]
    if idle:
        follower.close()
    log.write_text("10:05 new\n10:06 newer\n")
    assert list(follower.new_lines()) == ["10:05 new", "10:06 newer"]


def test_no_line_is_lost_or_told_twice_through_ten_retries_of_a_real_job(log):
    job = f"""
from earmark.logs import job_log
for attempt in range(10):
    try:
        with job_log({str(log)!r}):
            for line in range(3000):
                print("line", attempt, line)
            raise ValueError
    except SystemExit:
        pass
"""
    follower, seen = FollowedLog(log), []
    with subprocess.Popen([sys.executable, "-c", job]) as process:
        while process.poll() is None:
            seen += follower.new_lines()
    seen += follower.new_lines()
    last_attempt = [line for line in seen if line.startswith("line 9 ")]
    assert last_attempt == [f"line 9 {line}" for line in range(3000)]
    lines = [line for line in seen if line.startswith("line ")]
    assert len(lines) == len(set(lines))
    # Retries of a moment each may come and go between two looks; one that was seen at all was seen to its end.
    for attempt in {line.split()[1] for line in lines}:
        assert sum(line.startswith(f"line {attempt} ") for line in lines) == 3000


def test_the_newest_log_of_a_stage_is_shown_with_slurms(log, tmp_path, capsys):
    slurm_log = tmp_path / "logs/slurm/rule_align_shard/0000/17.log"
    slurm_log.parent.mkdir(parents=True)
    slurm_log.write_text("from Slurm\n")
    time.sleep(0.02)
    add(log, "".join(f"line {number}\n" for number in range(5)))
    tail("talks", "align", folder=tmp_path, lines=2, follow=False)
    assert capsys.readouterr().out.splitlines() == [
        f"==> {log} <==", "line 3", "line 4", f"==> {slurm_log} <==", "from Slurm"
    ]  # fmt: skip


def test_an_unknown_stage_is_answered_with_the_known_ones_and_an_unknown_run_with_the_known_runs(log, tmp_path):
    with pytest.raises(InputError, match="align, align_shard, train, encode"):
        tail("talks", "aling", folder=tmp_path, lines=2, follow=False)
    with pytest.raises(InputError, match="talks"):
        tail("demo", None, folder=tmp_path, lines=2, follow=False)


def test_following_goes_on_with_logs_that_appear_later(log, tmp_path):
    add(log, "known\n")
    command = [EARMARK, "tail", "align", "--run", "talks", "-f", "-n", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["==> logs/talks/align/0000.log <==\n", "known\n"]
        add(log, "added\n")
        assert process.stdout.readline() == "added\n"
        slurm_log = tmp_path / "logs/slurm/rule_align_shard/0000/18.log"
        slurm_log.parent.mkdir(parents=True)
        slurm_log.write_text("retried\n")
        assert process.stdout.readline() == "==> logs/slurm/rule_align_shard/0000/18.log <==\n"
        assert process.stdout.readline() == "retried\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
