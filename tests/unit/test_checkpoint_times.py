"""When a checkpoint is due: by an interval, before the job ends, and when the process is told to end."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest

from earmark.checkpoint_times import CheckpointTimes, job_end


@dataclass
class Clock:
    """Goes on when it is told to."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def due(times: CheckpointTimes, clock: Clock, steps: int, step_s: float = 10.0, took_s: float = 4.0) -> list[int]:
    """Train so many steps, and say after which of them a checkpoint was due; it is written then."""
    found = []
    for step in range(1, steps + 1):
        clock.now_s += step_s
        if times.due():
            found.append(step)
            began = clock.now_s
            clock.now_s += took_s
            times.written(began)
    return found


def test_a_checkpoint_is_due_so_long_after_the_last_one_was_whole(clock: Clock) -> None:
    assert due(CheckpointTimes(1.0, clock=clock), clock, 20) == [6, 12, 18]


def test_without_an_interval_none_is_due_whatever_happens(clock: Clock) -> None:
    times = CheckpointTimes(0, end=clock.now_s + 30, clock=clock)
    with times.heeding_sigterm():
        times.told_to_end = True
        assert due(times, clock, 20) == []


def test_the_last_one_before_the_jobs_end_leaves_time_for_a_step_and_for_writing_it_twice(clock: Clock) -> None:
    # 60 s of margin, a step of 10 s, and twice the 4 s that the first took: from 78 s before the end on.
    end = clock.now_s + 200
    times = CheckpointTimes(0.5, end=end, clock=clock)
    assert due(times, clock, 3) == [3]
    times.every_min = 60
    (step,) = due(times, clock, 30)
    assert 78 - 10 < end - (clock.now_s - 4 - 10 * (30 - step)) <= 78


def test_an_evaluation_is_no_slow_step(clock: Clock) -> None:
    times = CheckpointTimes(60, end=clock.now_s + 3600, clock=clock)
    assert due(times, clock, 1) == []
    clock.now_s += 1500  # it takes long
    times.step_begins()
    assert due(times, clock, 1) == []


@pytest.mark.parametrize("before_evaluation", [False, True])
def test_before_an_epochs_last_step_time_is_left_for_an_evaluation_too(clock: Clock, before_evaluation: bool) -> None:
    times = CheckpointTimes(60, end=clock.now_s + 1800, clock=clock)
    assert due(times, clock, 1) == []
    clock.now_s += 700  # the evaluation, and the epoch's checkpoint behind it
    times.written(clock.now_s)
    times.step_begins()
    assert due(times, clock, 30) == []
    clock.now_s += 10
    assert not times.due(before_evaluation)  # 770 s will do: the evaluation, 60 s of margin, a step
    clock.now_s += 10
    assert times.due(before_evaluation) == before_evaluation


def test_a_job_that_outlives_the_end_that_was_said_goes_on_by_the_interval(clock: Clock) -> None:
    assert due(CheckpointTimes(1.0, end=clock.now_s - 5, clock=clock), clock, 14) == [1, 7, 13]


def test_sigterm_makes_one_due_at_once_and_is_as_before_afterwards(clock: Clock) -> None:
    before = signal.getsignal(signal.SIGTERM)
    times = CheckpointTimes(15, clock=clock)
    with times.heeding_sigterm():
        assert not times.due()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what Slurm has sent already
        assert times.due()
    assert signal.getsignal(signal.SIGTERM) is before


def test_slurm_from_23_02_on_says_when_a_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert job_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1795356614")
    assert job_end() == 1795356614


def test_a_job_whose_slurm_does_not_answer_has_no_known_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", "")
    assert job_end() is None
    assert "when this job ends is not known" in caplog.text
