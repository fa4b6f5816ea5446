import subprocess
import sys
import textwrap

import pytest

from earmark.cluster.job_record import read_record


def run_job(tmp_path, body, before=""):
    log = tmp_path / "deep/job.log"
    code = "\n".join(
        [
            "import ctypes, logging, sys",
            "from earmark import logs",
            "from earmark.errors import InputError",
            textwrap.dedent(before),
            f"with logs.job_log({str(log)!r}):",
            textwrap.indent(textwrap.dedent(body), "    "),
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return result, log.read_text(encoding="utf-8").splitlines()


def test_the_log_of_a_job_that_worked_holds_everything_printed_and_ends_with_done(tmp_path):
    result, lines = run_job(
        tmp_path,
        """
        print("from python", flush=True)
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)
        logging.info("from logging")
        """,
    )
    assert result.returncode == 0
    assert result.stdout == result.stderr == ""
    assert lines[:2] == ["from python", "from C"]
    assert lines[2].endswith("INFO from logging")
    assert lines[-1].endswith("INFO done")


def test_a_users_mistake_is_one_last_line_without_traceback(tmp_path):
    result, lines = run_job(
        tmp_path,
        """
        for item in logs.progress(range(10), unit="rows"):
            if item == 5:
                raise InputError("a.tsv:3: is wrong;\\n  mend it")
        """,
    )
    assert result.returncode == 1
    assert len(lines) == 1
    assert lines[0].endswith("ERROR a.tsv:3: is wrong; mend it")


def test_a_defect_leaves_its_traceback_before_the_last_line(tmp_path):
    result, lines = run_job(tmp_path, "{}['key']")
    assert result.returncode == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1].endswith("ERROR unexpected KeyError: 'key'")


def test_progress_in_a_log_is_whole_lines_at_intervals(tmp_path):
    result, lines = run_job(
        tmp_path,
        """
        logs.LOG_INTERVAL_S = 0
        assert list(logs.progress("ab", total=2, unit="rows")) == ["a", "b"]
        """,
    )
    assert result.returncode == 0
    assert [line.split("INFO ")[1] for line in lines] == ["1 of 2 rows", "2 of 2 rows", "done"]


FULL_DISK = """
    from earmark.cluster import job_record
    written = []
    def write(log, record):
        written.append(record)
        if len(written) > {allowed}:
            raise OSError(28, "No space left on device")
    job_record._write = write
"""


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_record_that_cannot_be_written_costs_no_work_and_is_told(tmp_path, allowed):
    result, lines = run_job(tmp_path, "print('worked')", FULL_DISK.format(allowed=allowed))
    assert result.returncode == 0
    assert "worked" in lines
    assert sum("WARNING" in line and "No space left" in line for line in lines) == 1
    assert lines[-1].endswith("INFO done")
    result, lines = run_job(tmp_path, "raise InputError('mend it')", FULL_DISK.format(allowed=allowed))
    assert result.returncode == 1
    assert lines[-1].endswith("ERROR mend it")


@pytest.mark.parametrize("text", ["[]", "{}", '{"slurm": null, "process": {"name": 1}}', '{"slurm": null}', "\udcff"])
def test_a_record_of_another_version_stops_no_job(tmp_path, text):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/job.job.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read_record(tmp_path / "deep/job.log") is None
    result, lines = run_job(tmp_path, "pass")
    assert result.returncode == 0
    assert len(lines) == 1


def test_the_record_says_what_the_job_and_its_children_used(tmp_path):
    run_job(
        tmp_path,
        """
        import subprocess, time
        big = "x = bytearray(400_000_000); y = [n for n in range(3_000_000)]"
        subprocess.run([sys.executable, "-c", big], check=True)
        """,
    )
    record = read_record(tmp_path / "deep/job.log")
    assert record.peak_mb > 380
    assert record.cpu_s > 0.05


def test_an_interrupted_job_is_not_a_failed_one(tmp_path):
    result, lines = run_job(tmp_path, "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    assert result.returncode == 130
    assert lines[-1].endswith("WARNING interrupted")
    assert read_record(tmp_path / "deep/job.log").outcome == "interrupted"
