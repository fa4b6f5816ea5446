"""What jobs asked for and what they used: from Snakemake's benchmarks and the records that jobs leave.

Both tell too little, each in its way, and the larger counts. The benchmark looks at all processes of a job together,
but seldom once it runs for longer, and misses peaks and what a short-lived child did. The record has the system's own
count at the job's end, but of memory only that of the largest process. Several processes whose peak together falls
between two looks are still underrated.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.cluster.gpu_use import GpuUse
from earmark.cluster.job_record import read_record
from earmark.cluster.plan import Plan, PlannedJob

# A job on Slurm holds two Snakemakes beside its script, of about 130 MB each, which the benchmark does not count.
_SNAKEMAKES_MB = 300
_HEADROOM, _TIME_HEADROOM = 1.3, 3.0  # what is advised, over the largest use seen
_LEAST_MB, _LEAST_MIN = 500, 10
_NEAR = 0.85  # of what was asked for: the next job may need more
_FAR, _FAR_TIME = 1.5, 6.0  # times what would be enough: worth a word
_SHORT_S = 30.0  # a shorter job says little about how it uses its cores
_IDLE_GPU, _SMALL_GPU, _FULL_GPU = 0.1, 0.25, 0.95  # shares of a GPU's time and memory that are worth a word


@dataclass(frozen=True)
class JobUsage:
    """One job that ended well. None: not asked for, not measured, or never in a queue. Memory is in MB."""

    rule: str
    run_s: float
    wait_s: float | None
    cpu_s: float | None
    threads: int | None
    used_mb: float | None
    asked_mb: float | None
    asked_min: float | None
    gpu: str
    gpu_use: GpuUse | None
    attempt: int
    on_slurm: bool


@dataclass(frozen=True)
class RuleUsage:
    """All jobs of a rule. `cpu_efficiency` is CPU time over run time x threads, of the jobs together."""

    rule: str
    jobs: int
    retried: int
    run_s: float
    run_max_s: float
    wait_median_s: float | None
    wait_max_s: float | None
    cpu_efficiency: float | None
    threads: int | None
    used_max_mb: float | None
    used_p95_mb: float | None
    asked_mb: float | None
    asked_min: float | None
    gpu: str
    gpu_busy: float | None  # the mean over the jobs, weighted by their run time
    gpu_mb: float | None
    gpu_total_mb: float | None
    on_slurm: bool

    def advice(self) -> str | None:
        """One sentence where what was asked for is far from what was used; None where it is not."""
        told: list[str] = []
        why: set[str] = set()
        better: dict[str, list[str]] = {}
        for finding in (self._memory(), self._time(), self._threads()):
            if finding is not None:
                told.append(finding[0])
                option, value = finding[1].split()
                better.setdefault(option, []).append(value)
                why.add(finding[2])
        if not told:
            return None
        end = "would do" if why == {"enough"} else "is safer" if why == {"safer"} else "is better"
        options = " ".join(" ".join([option, *values]) for option, values in better.items())
        return f"{self.rule} {'; '.join(told)}: {options} {end}"

    def gpu_advice(self) -> str | None:
        """One sentence where a job's GPUs were nearly full or mostly idle; None where not, or where nobody looked."""
        if self.gpu_busy is None or self.gpu_mb is None or not self.gpu_total_mb:
            return None
        memory = f"used at most {self.gpu_mb:.0f} of a GPU's {self.gpu_total_mb:.0f} MB"
        if self.gpu_mb > _FULL_GPU * self.gpu_total_mb:
            return f"{self.rule} {memory}: smaller batches, or GPUs with more memory (cluster.gpu_gres), are safer"
        if self.gpu_busy >= _IDLE_GPU:
            return None
        told = f"{self.rule} asked for {self.gpu or 'a GPU'} and kept it {self.gpu_busy:.0%} busy"
        if self.gpu_mb < _SMALL_GPU * self.gpu_total_mb:
            told += f"; it {memory}"
        return f"{told}: larger batches or a smaller GPU would do, or none (cluster.gpu_partition: null)"

    def _resource(self, name: str, value: int) -> str:
        return f"--set-resources {self.rule}:{name}={value}"

    def _memory(self) -> tuple[str, str, str] | None:
        if self.used_max_mb is None or self.asked_mb is None:
            return None
        told = f"asked for {self.asked_mb:.0f} MB, used at most {self.used_max_mb:.0f}"
        enough = _rounded_up(max(_HEADROOM * self.used_max_mb + _SNAKEMAKES_MB, _LEAST_MB), 100)
        if self.used_max_mb + (_SNAKEMAKES_MB if self.on_slurm else 0) > _NEAR * self.asked_mb:
            more = max(enough, _rounded_up(_HEADROOM * self.asked_mb, 100))
            return told, self._resource("mem_mb", more), "safer"
        return (told, self._resource("mem_mb", enough), "enough") if self.asked_mb >= _FAR * enough else None

    def _time(self) -> tuple[str, str, str] | None:
        if self.asked_min is None:
            return None
        took_min = self.run_max_s / 60
        told = f"asked for {self.asked_min:.0f} min, took at most {took_min:.1f}"
        enough = _rounded_up(max(_TIME_HEADROOM * took_min, _LEAST_MIN), 10)
        if took_min > _NEAR * self.asked_min:
            return told, self._resource("runtime", enough), "safer"
        return (told, self._resource("runtime", enough), "enough") if self.asked_min >= _FAR_TIME * enough else None

    def _threads(self) -> tuple[str, str, str] | None:
        # On one machine the jobs share its cores, and one that waits for them looks idle.
        if not self.on_slurm or self.cpu_efficiency is None or self.threads is None or self.run_max_s < _SHORT_S:
            return None
        busy = self.cpu_efficiency * self.threads
        needed = max(1, math.ceil(busy - 0.2))
        if needed >= self.threads:
            return None
        return (
            f"asked for {self.threads} threads, kept {busy:.1f} busy",
            f"--set-threads {self.rule}={needed}",
            "enough",
        )


def run_usage(plan: Plan, folder: Path) -> list[JobUsage]:
    """What every job of a run used that has ended, those of earlier calls as well. `folder` is Snakemake's."""
    return [usage for job in [*plan.jobs, *plan.earlier] for usage in _job_usage(job, folder)]


def by_rule(jobs: Iterable[JobUsage]) -> list[RuleUsage]:
    """Sum up over the jobs of each rule, the longest rules first."""
    rules: dict[str, list[JobUsage]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    return sorted((_rule_usage(rule, found) for rule, found in rules.items()), key=lambda row: (-row.run_s, row.rule))


def _job_usage(job: PlannedJob, folder: Path) -> Iterable[JobUsage]:
    benchmark = folder / job.benchmark
    if not job.benchmark or not benchmark.is_file():
        return
    record = read_record(folder / job.log) if job.log else None
    slurm = record.slurm if record else None
    # A benchmark is that of an attempt that ended well; a later one may have failed.
    counted = record if record and record.outcome == "done" else None
    # What Slurm starts on several nodes is no child of the job's script, which alone was measured.
    measured = slurm is None or slurm.nodes == 1
    asked: dict[str, Any] = job.asked
    with benchmark.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield JobUsage(
                rule=job.rule,
                run_s=float(row["s"]),
                wait_s=slurm.wait_s if slurm else None,
                cpu_s=_larger(_number(row["cpu_time"]), counted.cpu_s if counted else None) if measured else None,
                threads=slurm.cpus // slurm.nodes if slurm else asked.get("threads"),
                used_mb=_larger(_number(row["max_rss"]), counted.peak_mb if counted else None) if measured else None,
                # Of this attempt where Slurm told; a first attempt's otherwise.
                asked_mb=slurm.mem_mb if slurm and slurm.mem_mb else asked.get("mem_mb"),
                asked_min=slurm.time_limit_min if slurm and slurm.time_limit_min else asked.get("runtime"),
                gpu=slurm.gres if slurm else "",  # on one machine nobody asks
                gpu_use=counted.gpu if counted else None,
                attempt=record.attempt if record else 1,
                on_slurm=slurm is not None,
            )


def _number(text: str) -> float | None:
    # "-" or "NA" for a job too short to be sampled.
    return float(text) if re.fullmatch(r"[\d.]+", text) else None


def _larger(*figures: float | None) -> float | None:
    return max((figure for figure in figures if figure is not None), default=None)


def _rule_usage(rule: str, jobs: Sequence[JobUsage]) -> RuleUsage:
    waits = [job.wait_s for job in jobs if job.wait_s is not None]
    memory = sorted(job.used_mb for job in jobs if job.used_mb is not None)
    measured = [job for job in jobs if job.cpu_s is not None and job.threads and job.run_s > 0]
    on_gpu = [(job.gpu_use, job.run_s) for job in jobs if job.gpu_use]
    on_gpu_s = sum(run_s for _, run_s in on_gpu)
    fullest = max((use for use, _ in on_gpu), key=lambda use: use.peak_mb / max(use.total_mb, 1), default=None)
    held_s = sum(job.run_s * (job.threads or 1) for job in measured)
    return RuleUsage(
        rule=rule,
        jobs=len(jobs),
        retried=sum(job.attempt > 1 for job in jobs),
        run_s=sum(job.run_s for job in jobs),
        run_max_s=max(job.run_s for job in jobs),
        wait_median_s=statistics.median(waits) if waits else None,
        wait_max_s=max(waits, default=None),
        cpu_efficiency=sum(job.cpu_s or 0 for job in measured) / held_s if held_s else None,
        threads=max((job.threads for job in jobs if job.threads), default=None),
        used_max_mb=max(memory, default=None),
        used_p95_mb=memory[math.ceil(0.95 * len(memory)) - 1] if memory else None,
        asked_mb=max((job.asked_mb for job in jobs if job.asked_mb), default=None),
        asked_min=max((job.asked_min for job in jobs if job.asked_min), default=None),
        gpu=max((job.gpu for job in jobs), default=""),
        gpu_busy=sum(use.busy * run_s for use, run_s in on_gpu) / on_gpu_s if on_gpu_s else None,
        gpu_mb=fullest.peak_mb if fullest else None,
        gpu_total_mb=fullest.total_mb if fullest else None,
        on_slurm=any(job.on_slurm for job in jobs),
    )


def _rounded_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
