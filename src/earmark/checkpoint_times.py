"""Is it time for a checkpoint? By the clock, before the Slurm job ends, and when the process is told to end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from earmark.cluster.squeue import SlurmError, job_by_id

log = logging.getLogger(__name__)

_MARGIN_S = 60.0  # Slurm's clock, a busy disk
_UNMEASURED_S = 30.0  # taken for a checkpoint's duration until one was written


def job_end() -> float | None:
    """When Slurm will end the job that this process is in, in seconds since 1970.

    None outside of Slurm, without a time limit, or where squeue does not answer, which is logged. Slurm from 23.02 on
    says it in the environment, earlier ones are asked.
    """
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if told.isdigit():
        return float(told)
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    try:
        job = job_by_id(job_id)
    except SlurmError as error:
        log.warning("when this job ends is not known, so no checkpoint is written just before: %s", error)
        return None
    if job is None or job.started_at is None or job.time_limit_min is None:
        return None
    return job.started_at + 60 * job.time_limit_min


class CheckpointTimes:
    """Says at the end of each step whether a checkpoint is due.

    It is `every_min` minutes after the last one, shortly before `end`, and when the process was told to end; never
    where `every_min` is 0. Shortly is a minute, the time of a step, and twice what the last checkpoint took: a step
    later would be too late. Before an epoch's last step it is longer by an evaluation, once one has been seen. `end`
    and `clock` are in seconds since 1970.
    """

    def __init__(self, every_min: float, end: float | None = None, clock: Callable[[], float] = time.time):
        self.every_min, self.end, self.clock = every_min, end, clock
        self.told_to_end = False
        self.took_s = _UNMEASURED_S
        self.evaluation_s = 0.0  # the longest so far, between an epoch's last step and the checkpoint after it
        self._written = self._step_began = clock()

    def step_begins(self) -> None:
        """What came before, an evaluation for instance, is no part of the step."""
        self._step_began = self.clock()

    def due(self, before_evaluation: bool = False) -> bool:
        """Whether a checkpoint is to be written after the step that ends now; the next one begins.

        `before_evaluation`: the next one is an epoch's last, behind which none is written before an evaluation ends.
        """
        now = self.clock()
        step_s, self._step_began = now - self._step_began, now
        if not self.every_min:
            return False
        ahead_s = _MARGIN_S + step_s + 2 * self.took_s + before_evaluation * self.evaluation_s
        if self.end is not None and now >= self.end - ahead_s:
            log.info("this job ends in %.0f s: a last checkpoint", self.end - now)
            self.end = None  # once: should the end come later than was said, the clock goes on
            return True
        return self.told_to_end or now - self._written >= 60 * self.every_min

    def written(self, began: float) -> None:
        """A checkpoint that was begun at this time is whole."""
        self.evaluation_s = max(self.evaluation_s, began - self._step_began)
        self._written = self._step_began = self.clock()
        self.took_s = self._written - began

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        """While the block runs, SIGTERM (a time limit, a preemption, scancel) sets `told_to_end` and ends nothing.

        It may come twice, from Slurm and from torchrun. Who sent it kills some time later: after 30 s by Slurm's and
        torchrun's defaults. Outside of the main thread, and where `every_min` is 0, it ends the process as ever.
        """
        if not self.every_min or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            self.told_to_end = True

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
