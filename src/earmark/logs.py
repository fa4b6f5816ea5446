"""One log file per job: every line of it is tail-able, and the last line of a failed one says why."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from earmark.cluster.gpu_use import GpuSampler, gpu_sampler
from earmark.cluster.job_record import JobRecord, begin_record, end_record
from earmark.errors import EarmarkError

Item = TypeVar("Item")
LOG_INTERVAL_S = 60.0  # between two lines of progress in a log file
_INTERRUPTED = 130  # the exit status of what Ctrl-C ended, by the shells' custom


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Send logging, stdout and stderr (those of C libraries too) to `path` while a job runs.

    An EarmarkError ends the process with status 1 and its message as the log's last line. Any other exception is a
    defect: its traceback goes into the log before the last line. Ctrl-C is neither. Beside the log, a record tells
    `earmark status` and `earmark resources` where and how the job runs; a job that cannot write it works all the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    path.unlink(missing_ok=True)  # a retry writes a new file: who follows the old one can still read its last lines
    with path.open("w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
        )
        record = sampler = None
        try:
            record, sampler = _begun(path), gpu_sampler()
            yield
        except EarmarkError as error:
            reason = " ".join(str(error).split())
        except KeyboardInterrupt:
            _end(path, record, sampler, "interrupted")
            logging.warning("interrupted")
            sys.exit(_INTERRUPTED)
        except Exception as error:
            traceback.print_exc()
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        else:
            _end(path, record, sampler, "done")
            logging.info("done")
            return
        _end(path, record, sampler, "failed", reason)
        logging.error("%s", reason)
        sys.exit(1)


def _begun(path: Path) -> JobRecord | None:
    try:
        return begin_record(path)
    except OSError as error:
        logging.warning("the job has no record, and `earmark status` cannot see it run: %s", error)
        return None


def _end(path: Path, record: JobRecord | None, sampler: GpuSampler | None, outcome: str, reason: str = "") -> None:
    if record is None:
        return
    try:
        end_record(path, record, outcome, reason, sampler.stop() if sampler else None)
    except OSError as error:  # a full disk: the record stays that of a job which was killed
        logging.warning("the job's record does not say how it ended: %s", error)


def progress(items: Iterable[Item], *, total: int | None = None, unit: str) -> Iterator[Item]:
    """tqdm for a terminal; one line a minute in a log file."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=f" {unit}")
        return
    told = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - told >= LOG_INTERVAL_S:
            told = time.monotonic()
            logging.info("%d%s %s", count, f" of {total}" if total else "", unit)
