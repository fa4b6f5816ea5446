"""What jobs used, from the files they leave."""

import dataclasses
import json
import os
import time

import pytest

from earmark.cluster import gpu_use
from earmark.cluster.gpu_use import GpuUse, gpu_sampler
from earmark.cluster.job_record import Granted, JobRecord, begin_record, end_record, read_record, record_path
from earmark.cluster.plan import Plan, PlannedJob
from earmark.cluster.process import this_process
from earmark.cluster.usage import by_rule, run_usage
from earmark.cluster.usage_page import cells

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


@pytest.fixture
def usage(tmp_path):
    """usage(rows): by rule, of jobs (seconds, MB, CPU seconds, what Slurm gave or None)."""

    def make(*rows, threads=2, asked_mb=4000, asked_min=60, counted=(None, None), gpu=None, outcome="done"):
        jobs = []
        for number, (seconds, mb, cpu_s, granted) in enumerate(rows):
            asked = {"threads": threads, "mem_mb": asked_mb, "runtime": asked_min}
            job = PlannedJob(
                "align_shard", "align", {"shard": f"{number}"}, [], f"{number}.log", f"{number}.tsv", True, asked
            )
            (tmp_path / job.benchmark).write_text(
                f"{HEADER}{seconds}\t0:00:00\t{mb}\t1\t1\t1\t0\t0\t90\t{cpu_s}\n", encoding="utf-8"
            )
            record = JobRecord(this_process(), 0.0, 1, granted, 1.0, outcome, "", *counted, gpu)
            record_path(tmp_path / job.log).write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
            jobs.append(job)
        plan = Plan(this_process(), [], "", None, time.time(), jobs[:1], jobs[1:])
        (rule,) = by_rule(run_usage(plan, tmp_path))
        return rule

    return make


def granted(wait_s=0.0, mem_mb=4000.0, nodes=1):
    return Granted("7", 100.0, 100.0 + wait_s, 2 * nodes, mem_mb, 60.0, "gpu:1", "gpu", "g1", nodes)


def test_figures_are_summed_up_over_the_jobs_of_this_call_and_of_earlier_ones(usage):
    rule = usage((100, 800, 150, granted(10)), (300, 900, 350, granted(50)), (100, 850, 100, granted(20)))
    assert (rule.jobs, rule.run_s, rule.run_max_s) == (3, 500, 300)
    assert (rule.wait_median_s, rule.wait_max_s) == (20, 50)
    assert rule.cpu_efficiency == pytest.approx(600 / (2 * 500))
    assert (rule.used_max_mb, rule.used_p95_mb, rule.asked_mb) == (900, 900, 4000)
    assert rule.gpu == "gpu:1"


def test_on_one_machine_nothing_waits_and_no_gpu_is_asked_for(usage):
    rule = usage((100, 800, 150, None))
    assert (rule.wait_median_s, rule.wait_max_s, rule.gpu) == (None, None, "")


def test_a_job_too_short_to_be_sampled_counts_without_memory_and_cpu(usage):
    rule = usage((0.1, "NA", "NA", None))
    assert (rule.jobs, rule.used_max_mb, rule.cpu_efficiency) == (1, None, None)
    assert "MB" not in (rule.advice() or "")


def test_the_larger_of_benchmark_and_record_counts_and_a_failed_attempts_record_does_not(usage):
    seen_seldom = usage((100, 800, 150, None), counted=(180.0, 2500.0))
    assert (seen_seldom.used_max_mb, seen_seldom.cpu_efficiency) == (2500, pytest.approx(180 / 200))
    several_processes = usage((100, 3800, 150, None), counted=(120.0, 1900.0))
    assert (several_processes.used_max_mb, several_processes.cpu_efficiency) == (3800, pytest.approx(150 / 200))
    assert usage((100, 800, 150, None), counted=(180.0, 2500.0), outcome="failed").used_max_mb == 800
    assert usage((1, "NA", "NA", None), counted=(0.9, 200.0)).used_max_mb == 200


def test_far_too_much_is_advised_against_and_what_is_advised_needs_no_further_advice(usage):
    rule = usage((1200, 900, 2300, granted()))
    assert (
        rule.advice()
        == "align_shard asked for 4000 MB, used at most 900: --set-resources align_shard:mem_mb=1500 would do"
    )
    assert usage((1200, 900, 2300, granted(mem_mb=1500.0)), asked_mb=1500).advice() is None


def test_a_job_near_its_limit_is_told_so(usage):
    advice = usage((3500, 3800, 6000, granted())).advice()
    assert "3800" in advice
    assert advice.endswith(": --set-resources align_shard:mem_mb=5300 align_shard:runtime=180 is safer")


def test_idle_cores_are_told_where_slurm_gave_them(usage):
    advice = usage((1200, 3000, 900, granted()))
    assert advice.advice() == "align_shard asked for 2 threads, kept 0.8 busy: --set-threads align_shard=1 would do"
    assert usage((1200, 3000, 900, None)).advice() is None


def test_of_a_job_on_several_nodes_its_script_alone_was_measured_and_nothing_is_advised_by_that(usage):
    rule = usage((1200, 200, 10, granted(nodes=2)), counted=(10.0, 250.0))
    assert (rule.threads, rule.cpu_efficiency, rule.used_max_mb, rule.asked_mb) == (2, None, None, 4000)
    assert rule.advice() is None


def test_an_idle_gpu_and_a_full_one_are_told(usage):
    idle = usage((1200, 3000, 2300, granted()), gpu=GpuUse(1, 0.04, 3000.0, 81559.0))
    assert idle.gpu_advice() == (
        "align_shard asked for gpu:1 and kept it 4% busy; it used at most 3000 of a GPU's 81559 MB: larger batches or "
        "a smaller GPU would do, or none (cluster.gpu_partition: null)"
    )
    full = usage((1200, 3000, 2300, granted()), gpu=GpuUse(2, 0.9, 80000.0, 81559.0))
    assert "80000 of a GPU's 81559 MB: smaller batches" in full.gpu_advice()
    assert usage((1200, 3000, 2300, granted()), gpu=GpuUse(1, 0.5, 40000.0, 81559.0)).gpu_advice() is None
    assert cells(idle)[-2:] == ("4%", "3000 of 81559")
    assert usage((1200, 3000, 2300, granted())).gpu_advice() is None


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi("echo 1, 2, 3"): the machine's nvidia-smi; what it is called with goes to the file `asked`."""

    def make(script):
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


@pytest.fixture
def looks_often(monkeypatch):
    monkeypatch.setattr(gpu_use, "_FIRST_S", 0.0)
    monkeypatch.setattr(gpu_use, "_EVERY_S", 0.05)


def looked_at(asked, times):
    ends = time.monotonic() + 30
    while not asked.is_file() or len(asked.read_text().splitlines()) < times:
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.usefixtures("looks_often")
def test_gpus_are_looked_at_by_the_names_that_the_job_was_given_and_the_record_keeps_it(
    nvidia_smi, monkeypatch, tmp_path
):
    asked = nvidia_smi("echo '40, 1000, 81559'; echo '60, 3000, 81559'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a, GPU-2b")
    sampler = gpu_sampler()
    looked_at(asked, times=2)  # the first look is over when the second begins
    use = sampler.stop()
    assert use == GpuUse(2, 0.5, 3000, 81559)
    assert asked.read_text().startswith("--id=GPU-1a,GPU-2b --query-gpu=utilization.gpu,memory.used,memory.total")
    log = tmp_path / "job.log"
    end_record(log, begin_record(log), "done", gpu=use)
    assert read_record(log).gpu == use


@pytest.mark.usefixtures("looks_often")
@pytest.mark.parametrize("script", ["echo '[N/A], 1000, 81559'", "echo No devices; exit 6", "kill -SEGV $$"])
def test_an_nvidia_smi_that_tells_nothing_gives_no_figures_and_no_error(nvidia_smi, monkeypatch, script):
    asked = nvidia_smi(script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    sampler = gpu_sampler()
    looked_at(asked, times=2 if "N/A" in script else 1)
    assert sampler.stop() is None


@pytest.mark.parametrize("given", ["", "-1", "NoDevFiles,"])
def test_a_job_without_a_gpu_is_not_looked_at(nvidia_smi, monkeypatch, given):
    nvidia_smi("echo '40, 1000, 81559'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpu_sampler() is None
