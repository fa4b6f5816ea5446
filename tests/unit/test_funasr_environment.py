"""FunASR's environment: programs run in it, and what is told where it is not as it should be."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from funasr_model import funasr_python

from earmark import child_process
from earmark.errors import ConfigError, EarmarkError
from earmark.funasr_nano import environment
from earmark.funasr_nano.environment import run


def stand_in(folder: Path, *, funasr: str | None, body: str = "pass") -> Path:
    """An interpreter that has this version of funasr, and in which every program of Earmark's is `body`."""
    site = folder / "site"
    site.mkdir()
    if funasr is not None:
        (site / f"funasr-{funasr}.dist-info").mkdir()
        (site / f"funasr-{funasr}.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: funasr\nVersion: {funasr}\n"
        )
    (site / "sitecustomize.py").write_text(
        "import sys, types\n"
        f"program = types.ModuleType('earmark.funasr_nano.inside.stand_in')\nexec({body!r}, vars(program))\n"
        "sys.modules['earmark.funasr_nano.inside.stand_in'] = program\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec {Path(sys.executable).resolve()} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_program_gets_its_job_and_its_words_reach_the_log_with_their_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "import logging\ndef main(job):\n    logging.warning('heard %s', job['word'])\n    print('and on')"
    with caplog.at_level(logging.INFO):
        run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {"word": "Zürich"})
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "heard Zürich"),
        ("INFO", "and on"),
    ]


def test_an_error_for_the_user_comes_out_as_it_was_told_inside(tmp_path: Path) -> None:
    body = (
        "def main(job):\n    from earmark.errors import InputError\n    raise InputError('a.wav: gone; copy it again')"
    )
    with pytest.raises(EarmarkError, match=r"^a\.wav: gone; copy it again$"):
        run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {})


def test_a_defect_inside_is_told_by_its_type_and_message(tmp_path: Path) -> None:
    body = "def main(job):\n    job['no such key']"
    with pytest.raises(EarmarkError, match="unexpected KeyError in FunASR's environment: 'no such key'"):
        run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {})


def test_a_program_that_is_killed_is_told_by_its_signal(tmp_path: Path) -> None:
    body = "import os\ndef main(job):\n    print('reading', flush=True)\n    os.kill(os.getpid(), 9)"
    with pytest.raises(EarmarkError, match=r"ended by signal 9 \(SIGKILL\).*too little memory.*last line: reading"):
        run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {})


def test_what_lies_in_the_working_directory_and_in_earmarks_environment_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = "def main(job):\n    import importlib.util\n    assert importlib.util.find_spec('snakemake') is None"
    run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {})


def test_a_missing_interpreter_is_told_with_the_way_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no Python interpreter.*make funasr.*envs/funasr\.yaml"):
        run(tmp_path / "bin/python", "stand_in", {})


def test_an_environment_without_funasr_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(EarmarkError, match=r"this Python has no funasr.*make funasr"):
        run(stand_in(tmp_path, funasr=None), "stand_in", {})


@pytest.mark.parametrize("version", ["1.4.0", "1.2.7"])
def test_a_funasr_that_ignores_lora_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(EarmarkError, match=rf"its funasr is {version}, and before 1\.4\.1 LoRA was ignored"):
        run(stand_in(tmp_path, funasr=version), "stand_in", {})


def test_a_program_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    body = (
        "import os, pathlib, time\n"
        "def main(job):\n    pathlib.Path(job['pid']).write_text(str(os.getpid()))\n    time.sleep(600)"
    )
    python, pid = stand_in(tmp_path, funasr="1.4.16", body=body), tmp_path / "pid"
    starting = (
        "from pathlib import Path\nfrom earmark.funasr_nano.environment import run\n"
        f"run(Path({str(python)!r}), 'stand_in', {{'pid': {str(pid)!r}}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", starting])
    try:
        while not (pid.exists() and pid.read_text()):
            assert parent.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(pid.read_text()))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    child.wait(timeout=60)


def test_a_program_that_does_not_end_when_asked_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "import os, signal, time\n"
        "def main(job):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)"
    )
    heard = []

    def interrupted(_: str, line: str) -> None:
        heard.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr(child_process, "_GRACE_S", 0.2)
    monkeypatch.setattr(environment.log, "info", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {})
    assert not psutil.pid_exists(heard[0])


def test_all_libraries_get_the_same_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in child_process._THREADS:
        monkeypatch.setenv(name, "64")
    body = (
        "import os\ndef main(job):\n"
        "    assert [os.environ[f'{name}_NUM_THREADS'] for name in ('OMP', 'MKL', 'OPENBLAS')] == ['3'] * 3"
    )
    run(stand_in(tmp_path, funasr="1.4.16", body=body), "stand_in", {}, threads=3)


def test_a_model_that_cannot_be_fetched_is_told_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # where nobody answers, on machines with a network too
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = r"nobody/none: could not be fetched \(Hugging Face: .*; ModelScope: .*hf download nobody/none.*model_dir"
    with pytest.raises(EarmarkError, match=told):
        run(funasr_python(), "fetch", {"hub_id": "nobody/none", "result": str(tmp_path / "result")})
