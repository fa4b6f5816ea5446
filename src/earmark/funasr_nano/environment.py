"""FunASR in an environment of its own: programs of `inside/` run by its interpreter, with their words in this log."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark.child_process import end, end_with_parent, said, variables
from earmark.errors import ConfigError, EarmarkError

log = logging.getLogger(__name__)

INSIDE = "earmark.funasr_nano.inside"
_PACKAGE = Path(__file__).parents[1]
_LEVEL = re.compile(r"(WARNING|ERROR) (.*)")  # how `inside` marks what is more than information
_HOW = "make FunASR's environment with `make funasr` (pip) or from envs/funasr.yaml (conda)"


def run(python: Path, module: str, job: Mapping[str, Any], *, processes: int = 1, threads: int = 1) -> None:
    """Call `main(job)` of `earmark.funasr_nano.inside.<module>` with the interpreter `python` of FunASR's environment.

    `job` is handed over as JSON. Every line the program prints goes into this process's log as it comes. It runs on
    `threads` cores, with `processes` over 1 in so many processes that share them, by torchrun, and ends when this
    process does. An EarmarkError is raised here as it was there; any other end with a failure is an EarmarkError with
    the program's own last word. ConfigError if there is no interpreter, or none with a FunASR that will do.
    """
    python = python.absolute()  # not resolved: a virtual environment's interpreter is a link, and must be called by it
    if not os.access(python, os.X_OK) or python.is_dir():
        raise ConfigError(
            f"{python}: there is no Python interpreter (funasr_nano.python); {_HOW}, or name the interpreter of an "
            "environment that has funasr"
        )
    with tempfile.TemporaryDirectory(prefix="earmark-funasr-") as scratch_name:
        scratch = Path(scratch_name)
        # The package alone, by a link: the folder it lies in may hold other versions of what FunASR imports.
        (scratch / "path").mkdir()
        (scratch / "path" / "earmark").symlink_to(_PACKAGE, target_is_directory=True)
        (scratch / "errors").mkdir()
        (scratch / "job.json").write_text(json.dumps(dict(job), ensure_ascii=False), encoding="utf-8")
        command = [str(python)]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", INSIDE, module, str(scratch / "job.json")]
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "VIRTUAL_ENV"}}
        environment |= variables(threads // processes, scratch / "errors")
        environment |= {
            "PYTHONPATH": str(scratch / "path"),
            "PYTHONSAFEPATH": "1",  # what lies in the working directory is not imported
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        status, last_line = _follow(command, environment)
        if status:
            raise EarmarkError(said(scratch / "errors") or _without_a_word(module, status, last_line, python))


def _follow(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a program, log its lines: its exit status, and the last line that was not empty."""
    last_line = ""
    running = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        preexec_fn=end_with_parent,
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if not (line := line.rstrip()):
                continue
            last_line = line
            if marked := _LEVEL.match(line):
                log.log(getattr(logging, marked[1]), "%s", marked[2])
            else:
                log.info("%s", line)
        return running.wait(), last_line
    except BaseException:
        end(running)
        raise


def _without_a_word(module: str, status: int, last_line: str, python: Path) -> str:
    if status < 0:
        return (
            f"FunASR's {module} was ended by signal {-status} ({signal.Signals(-status).name}); a process that is "
            f"killed often had too little memory. Its last line: {last_line or 'none'}"
        )
    return f"FunASR's {module} ended with status {status} under {python}; its last line: {last_line or 'none'}"
