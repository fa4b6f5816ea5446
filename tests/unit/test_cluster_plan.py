"""The plan of a call, between calls, versions and other runs."""

import dataclasses
import json
import os

import pytest

from earmark.artifacts import write_json
from earmark.cluster.plan import PlannedJob, end_plan, plan_path, read_plan, write_plan


@pytest.fixture
def path(tmp_path):
    return plan_path("talks", tmp_path)


def write(path, *logs, elsewhere=False):
    jobs = [PlannedJob("align_shard", "align", {}, [], log, "", True, {}) for log in logs]
    write_plan(path, jobs, snakemake_log="", slurm_logs=None, slurm_run="earmark_1", elsewhere=elsewhere)


def test_jobs_of_the_call_before_are_kept_as_earlier_ones(path):
    write(path, "a", "b")
    write(path, "b")
    assert [job.log for job in read_plan(path).earlier] == ["a"]


@pytest.mark.parametrize("change", [{"folder": "/x"}, {"jobs": [{"rule": "x"}]}, {"snakemake": 3}])
def test_a_plan_of_another_version_counts_as_none(path, change):
    write(path, "a")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    end_plan(path, "done")  # it is nobody's
    write(path, "b")
    plan = read_plan(path)
    assert ([job.log for job in plan.jobs], plan.earlier, plan.slurm_run) == (["b"], [], "earmark_1")


@pytest.mark.parametrize(
    ("arguments", "elsewhere"),
    [
        (
            ["-s", "/w/Snakefile", "--directory", "/run", "--cores", "2", "x.parquet", "--configfile=/run/my.yaml"],
            False,
        ),
        (["-s", "/w/Snakefile", "--directory", "/run", "--configfile", "/run/my.yaml", "our.yaml"], True),
        (["--directory", "/run"], True),
        (["-s", "/w/Snakefile", "-d", "run"], True),
    ],
)
def test_relative_paths_beside_a_directory_count_from_elsewhere(path, monkeypatch, arguments, elsewhere):
    monkeypatch.setattr("sys.argv", ["snakemake", *arguments])
    write(path, "a", elsewhere=True)
    assert read_plan(path).elsewhere == elsewhere
    write(path, "a")
    assert not read_plan(path).elsewhere


def test_a_call_ends_its_own_plan_alone(path):
    write(path, "a")
    plan = read_plan(path)
    theirs = dataclasses.replace(plan, snakemake=dataclasses.replace(plan.snakemake, born=0.0))
    write_json(path, dataclasses.asdict(theirs))
    end_plan(path, "failed")
    assert read_plan(path).outcome is None
    write(path, "a")
    end_plan(path, "done")
    assert read_plan(path).outcome == "done"


def test_the_run_that_was_started_last_is_meant_whichever_ended_last(path, tmp_path):
    write(path, "a")
    later = plan_path("later", tmp_path)
    write(later, "a")
    os.utime(later, (0, 0))
    assert plan_path(None, tmp_path) == later
