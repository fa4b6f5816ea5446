import subprocess
import sys
import textwrap


def run_job(tmp_path, body):
    log = tmp_path / "deep/job.log"
    code = "\n".join(
        [
            "import ctypes, logging, sys",
            "from earmark import logs",
            "from earmark.errors import InputError",
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
