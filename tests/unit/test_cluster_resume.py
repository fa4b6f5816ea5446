"""Taking up a run: who else works in the folder, and what an earlier Snakemake left. Processes are real ones."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from earmark.artifacts import write_json
from earmark.cluster.job_record import read_record
from earmark.cluster.plan import Plan, PlannedJob, plan_path, read_plan
from earmark.cluster.process import name_of, this_process
from earmark.cluster.resume import NotResumed, resume

# Of a process that has ended: nobody was born in 1970.
GONE = dataclasses.replace(this_process(), pid=1, born=0.0)


@pytest.fixture
def left(tmp_path):
    """left(process, arguments): a run folder as a killed Snakemake leaves it, with its lock."""

    def make(process=GONE, arguments=("align", "--cores", "1")):
        job = PlannedJob("align_shard", "align", {"shard": "0"}, ["0.parquet"], "logs/talks/0.log", "", True, {})
        plan = Plan(process, list(arguments), "", None, time.time(), [job], [])
        write_json(plan_path("talks", tmp_path), dataclasses.asdict(plan))
        lock = tmp_path / ".snakemake/locks/0.output.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text("0.parquet\n")
        return tmp_path

    return make


@pytest.fixture
def living_job():
    """living_job(folder): a job's process with a child of its own, which nobody waits for any more."""
    started = []

    def start(folder):
        log = folder / "logs/talks/0.log"
        code = (
            "import subprocess, sys\nfrom earmark.logs import job_log\n"
            f"with job_log({str(log)!r}):\n"
            "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            f"    open({str(folder / 'child')!r}, 'w').write(str(child.pid))\n    child.wait()"
        )
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        while not (folder / "child").exists() or not (folder / "child").read_text():
            assert started[-1].poll() is None
            time.sleep(0.05)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def refusal(folder, arguments=(), mode="refuse", is_gone=False, forget_plan=False):
    with pytest.raises(NotResumed) as error:
        resume(folder, arguments, mode=mode, snakemake_is_gone=is_gone, forget_plan=forget_plan)
    assert list((folder / ".snakemake/locks").iterdir()), "the lock was taken away"
    return str(error.value)


def test_another_snakemake_in_the_folder_keeps_its_lock(left, tmp_path):
    folder = left()
    program = tmp_path / "bin/snakemake"
    program.parent.mkdir()
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)")
    with subprocess.Popen([sys.executable, program], cwd=folder, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert f"process {process.pid}" in refusal(folder, is_gone=True)
        process.kill()


def test_a_snakemake_of_another_machine_may_live(left):
    elsewhere = dataclasses.replace(GONE, host="login2")
    assert "on login2" in refusal(left(elsewhere))
    # Believed to be gone, it is no longer in the way; what stops the call then is its own arguments.
    assert "--forcerun" in refusal(left(elsewhere, ("--forcerun", "align")), is_gone=True)


def test_a_snakemake_that_the_plan_knows_is_not_disturbed_wherever_it_was_started(left):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd="/") as process:
        name = name_of(psutil.Process(process.pid))
        folder = left(name)
        # Another run's plan is newer, and its Snakemake is gone.
        shutil.copytree(folder / "logs/talks", folder / "logs/later")
        plan = read_plan(plan_path("talks", folder))
        later = dataclasses.replace(plan, snakemake=GONE, started_at=plan.started_at + 1)
        write_json(plan_path("later", folder), dataclasses.asdict(later))
        assert f"process {process.pid}" in refusal(folder, is_gone=True)
        elsewhere = dataclasses.replace(plan, snakemake=dataclasses.replace(GONE, host="login2"))
        write_json(plan_path("talks", folder), dataclasses.asdict(elsewhere))
        assert "on login2" in refusal(folder)
        process.kill()


def test_arguments_that_count_from_an_unknown_folder_are_not_repeated(left):
    folder = left()
    plan = dataclasses.replace(read_plan(plan_path("talks", folder)), elsewhere=True)
    write_json(plan_path("talks", folder), dataclasses.asdict(plan))
    assert "--directory" in refusal(folder)


@pytest.mark.parametrize(("script", "options"), [(".snakemake/scripts/tmp1.align.py", []), ("x.py", ["--nolock"])])
def test_a_job_that_has_no_record_yet_is_seen(left, script, options):
    folder = left()
    script = folder / script
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)")
    with subprocess.Popen([sys.executable, script, *options], cwd=folder, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        said = refusal(folder)
        process.kill()
        assert f"process {process.pid} on this machine" in said


def test_a_call_that_would_do_again_what_is_done_is_not_repeated(left):
    assert "-R" in refusal(left(arguments=("-R", "align_shard")))


def test_jobs_that_live_on_are_listed_and_kept(left, living_job):
    folder = left()
    process = living_job(folder)
    said = refusal(folder)
    assert f"process {process.pid} on this machine" in said
    assert "--cancel" in said
    assert process.poll() is None


def test_cancelling_ends_jobs_with_their_children_then_unlocks_and_starts(left, living_job):
    folder = left()
    (folder / "Snakefile").write_text('rule align:\n    output: "0.parquet"\n    shell: "touch {output}"\n')
    process = living_job(folder)
    child = int((folder / "child").read_text())
    earmark = str(Path(sys.executable).with_name("earmark"))
    command = [earmark, "resume", "--cancel", "--directory", folder.name]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "unlocking" in done.stdout
    assert process.wait(10) != 0
    assert not Path(f"/proc/{child}").exists()
    assert read_record(folder / "logs/talks/0.log").outcome is None
    assert (folder / "0.parquet").exists()


def test_a_plan_that_cannot_be_read_stops_until_it_is_said_to_be_forgotten(left, living_job):
    folder = left()
    path = plan_path("talks", folder)
    path.write_text(path.read_text()[:-40])
    assert f"{path} is broken" in refusal(folder)
    # What Snakemake was started with stood in there.
    assert "Say behind -- what Snakemake is to be started with" in refusal(folder, forget_plan=True)
    process = living_job(folder)
    said = refusal(folder, ["align", "--cores", "1"], forget_plan=True)
    assert f"process {process.pid} on this machine" in said
