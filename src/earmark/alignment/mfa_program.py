"""The Montreal Forced Aligner as a program: where it and its models are, its command lines, running it.

Options and behaviour as in MFA 3.4.3: montreal_forced_aligner/command_line/{align,utils}.py and config.py.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from earmark.errors import ConfigError, EarmarkError

_VERSION = re.compile(r"\d+(\.\d+)+\S*")
_PROGRESS_BAR = re.compile(r"━|\d+%\|")
_KEPT_LINES = 200  # of the output, to look for the reason of a failure
_REASON_LINES = 6
_REASON_LETTERS = 600
# A Python of its own runs it: what these name belongs to ours. A profile would bring the user's own MFA settings.
_NOT_HANDED_ON = ("PYTHONPATH", "PYTHONHOME", "MFA_PROFILE")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of the program ended: its exit status (negative: the signal that killed it) and its last lines."""

    status: int
    lines: list[str]

    @property
    def reason(self) -> str:
        """The end of what it printed, in one line."""
        said = " ".join(" ".join(self.lines[-_REASON_LINES:]).split())
        how = f"status {self.status}" if self.status >= 0 else f"signal {-self.status}"
        return f"{said[-_REASON_LETTERS:]} ({how})" if said else f"it printed nothing ({how})"

    @property
    def aligned_nothing(self) -> bool:
        """Whether it ended because not one utterance could be aligned (exceptions.py: NoAlignmentsError)."""
        return any("NoAlignmentsError" in line for line in self.lines)


def find_program(program: str) -> Path:
    """The absolute path of `program`, a path or a name on PATH. ConfigError if it is none or cannot be executed."""
    found = shutil.which(Path(program).expanduser())
    if found is None:
        raise ConfigError(
            f"align.mfa.program: {program!r} is no program on PATH and no file that can be executed. Make an "
            "environment with envs/mfa.yaml and set align.mfa.program to its bin/mfa, or activate it."
        )
    return Path(found).absolute()


def find_model(kind: str, name: str) -> Path:
    """The file of a model of `kind` (acoustic, dictionary, g2p): `name` is one that MFA has downloaded, or a path.

    ConfigError, naming the places looked at and the command that downloads it, if there is neither. Source:
    abc.py (MfaModel.pretrained_directory) and models/classes.py (extensions, generate_path).
    """
    suffixes = (".dict", ".txt") if kind == "dictionary" else (".zip",)
    root = Path(os.environ.get("MFA_ROOT_DIR", "~/Documents/MFA")).expanduser()
    downloaded = [root / "pretrained_models" / kind / f"{name}{suffix}" for suffix in suffixes]
    for path in [*downloaded, Path(name).expanduser()]:
        if path.is_file() or (kind == "acoustic" and path.is_dir()):
            if path.suffix in (".yaml", ".yml"):
                raise ConfigError(f"{path}: a dictionary per speaker is not supported; name one .dict or .txt file")
            return path.absolute()
    setting = {"acoustic": "acoustic_model", "dictionary": "dictionary", "g2p": "g2p_model"}[kind]
    looked = ", ".join(str(path) for path in [*downloaded, Path(name).absolute()])
    raise ConfigError(
        f"align.mfa.{setting}: {name!r} is neither a model that MFA has downloaded nor a path (looked for {looked}). "
        f"Download it with `mfa model download {kind} {name}`, or give the path of one."
    )


def align_command(
    program: Path,
    corpus: Path,
    dictionary: Path,
    acoustic_model: Path,
    output: Path,
    *,
    g2p_model: Path | None,
    beam: int,
    retry_beam: int,
    jobs: int,
) -> list[str]:
    """`mfa align` of a corpus folder into an output folder.

    The beams are no declared options: MFA reads them from what is left over, so they have to come last. Without
    --no_tokenization, models of some languages would cut the words anew.
    """
    command = [str(program), "align", *map(str, (corpus, dictionary, acoustic_model, output))]
    command += ["--num_jobs", str(jobs), "--no_tokenization"]
    if g2p_model:
        command += ["--g2p_model_path", str(g2p_model)]
    return [*command, "--beam", str(beam), "--retry_beam", str(retry_beam)]


def mfa_version(program: Path, scratch: Path) -> str:
    """What `mfa version` prints. EarmarkError if that does not work, ConfigError for another version than 3."""
    outcome = run([str(program), "version"], root=scratch / "mfa_version", folder=scratch)
    version = next((line for line in reversed(outcome.lines) if _VERSION.fullmatch(line)), None)
    if outcome.status or version is None:
        raise EarmarkError(f"`{program} version` does not work: {outcome.reason}. Is its environment whole?")
    if not version.startswith("3."):
        raise ConfigError(
            f"align.mfa.program: {program} is MFA {version}, which has other commands; install 3.4 (envs/mfa.yaml)"
        )
    return version


def run(command: list[str], *, root: Path, folder: Path) -> Outcome:
    """Run the program with `root` as its MFA_ROOT_DIR in `folder`; what it prints goes into our log as it comes.

    It gets a process group of its own, of which nothing is left when this function is, in whichever way.
    """
    logging.info("running %s", shlex.join(command))
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_HANDED_ON}
    # MFA calls programs of its environment, which may not be activated.
    environment["PATH"] = os.pathsep.join([str(Path(command[0]).resolve().parent), environment.get("PATH", os.defpath)])
    environment |= {"MFA_ROOT_DIR": str(root), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}  # COLUMNS: lines stay whole
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:  # a script whose interpreter is gone: the environment was moved
        raise ConfigError(f"align.mfa.program: {command[0]} cannot be started ({error}); make it anew") from None
    assert process.stdout is not None
    reader = threading.Thread(target=_relay, args=(process.stdout, lines), daemon=True)
    try:
        reader.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped: the group's number stays taken
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlive it would hold the pipe open for ever
        process.wait()
        reader.join()
        process.stdout.close()
    return Outcome(process.returncode, list(lines))


def _relay(output: IO[str], lines: deque[str]) -> None:
    """Log what the program prints, line by line and without progress bars, and keep the last of it in `lines`."""
    for line in output:
        if (line := line.strip()) and not _PROGRESS_BAR.search(line):
            logging.info("mfa: %s", line)
            lines.append(line)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM (scancel, a time limit) raises SystemExit, so that its traces are cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
