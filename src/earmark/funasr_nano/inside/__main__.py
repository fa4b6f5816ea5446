"""`python -m earmark.funasr_nano.inside MODULE JOB.json`: check the environment, then `main(job)` of the module.

Runs in FunASR's environment, which a user may have made long ago: nothing is imported before its versions are known.
"""

import importlib
import json
import logging
import os
import re
import sys
import traceback
from importlib import metadata
from pathlib import Path

LOWEST_FUNASR = (1, 4, 1)
_HOW = "make FunASR's environment with `make funasr` (pip) or from envs/funasr.yaml (conda)"


class _Levels(logging.Formatter):
    """Information as it is; what is more with its level in front."""

    def format(self, record):
        told = super().format(record)
        return told if record.levelno <= logging.INFO else f"{record.levelname} {told}"


def main():
    rank = os.environ.get("RANK", "0")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Levels("%(message)s"))
    logging.basicConfig(level=logging.INFO if rank == "0" else logging.WARNING, handlers=[handler])
    try:
        _check_versions()
    except RuntimeError as error:
        _fail(rank, f"{sys.executable}: {error}")
    from earmark.errors import EarmarkError

    try:
        program = importlib.import_module(f"{__package__}.{sys.argv[1]}")
        program.main(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    except EarmarkError as error:
        _fail(rank, str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        _fail(rank, f"unexpected {type(error).__name__} in FunASR's environment: {' '.join(str(error).split())}")


def _check_versions():
    if sys.version_info < (3, 10):  # noqa: UP036 (the user's own environment may have any)
        raise RuntimeError(f"Python {sys.version.split()[0]} is too old for Earmark, which needs 3.10 here; {_HOW}")
    try:
        version = metadata.version("funasr")
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"this Python has no funasr (funasr_nano.python); {_HOW}") from None
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < LOWEST_FUNASR:
        lowest = ".".join(map(str, LOWEST_FUNASR))
        raise RuntimeError(
            f"its funasr is {version}, and before {lowest} LoRA was ignored without a word; install {lowest} or later "
            f"there (pip install -U funasr), or {_HOW}"
        )


def _fail(rank, message):
    Path(os.environ["EARMARK_ERRORS"], rank).write_text(message, encoding="utf-8")
    sys.stdout.flush()
    sys.exit(1)


if __name__ == "__main__":
    main()
