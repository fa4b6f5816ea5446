"""squeue's answers, captured from a Slurm 22.05."""

import pytest

from earmark.cluster.squeue import SlurmError, duration_s, megabytes, parse

RUN = "earmark_76603dc7-7b8c-4e54-80f5-b67824e41101"
CAPTURED = (
    f"12\x1f{RUN}\x1fRUNNING\x1fgpu\x1f0:04\x1f1795343539\x1f1795343539\x1f1-02:00:00\x1f4\x1f15000M\x1fgres:gpu:2"
    "\x1fg[1-2]\x1f2\x1fNone\x1frule_train_backend_wildcards_retriever\x1f/scratch/my runs\n"
    "14\x1fa b|c\x1fPENDING\x1fgpu\x1f0:00\x1f1795343539\x1f1795345339\x1f30:00\x1f1\x1f15000M\x1fgres:gpu:2"
    "\x1f\x1f1\x1fResources\x1fx|y\x1f/scratch/my runs\n"
)


def test_a_running_job_is_read_whole():
    job, _ = parse(CAPTURED)
    assert (job.job_id, job.state, job.partition, job.nodes, job.reason) == ("12", "RUNNING", "gpu", "g[1-2]", "")
    assert job.node_count == 2
    assert (job.elapsed_s, job.submitted_at, job.started_at) == (4, 1795343539, 1795343539)
    assert (job.time_limit_min, job.cpus, job.mem_mb, job.gres) == (26 * 60, 4, 15000, "gpu:2")
    assert (job.comment, job.folder) == ("rule_train_backend_wildcards_retriever", "/scratch/my runs")
    assert job.is_workflow_job
    assert not job.waits


def test_the_start_that_slurm_expects_of_a_waiting_job_is_no_start_and_other_programs_jobs_are_told_apart():
    _, job = parse(CAPTURED)
    assert job.waits
    assert job.started_at is None
    assert job.reason == "Resources"
    assert not job.is_workflow_job


def test_a_line_in_another_form_is_an_error_not_a_job():
    with pytest.raises(SlurmError, match="not asked for"):
        list(parse("slurm_load_jobs error: Unable to contact slurm controller\n"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("30:00", 1800), ("2:00:00", 7200), ("1-02:00:00", 93600), ("UNLIMITED", None), ("INVALID", None)],
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "mb"), [("1500M", 1500), ("2G", 2048), ("1.5Gn", 1536), ("512K", 0.5), ("0", None), ("N/A", None)]
)
def test_memory(text, mb):
    assert megabytes(text) == mb
