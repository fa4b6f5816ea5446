"""`earmark tail`: the newest log of a stage, and what is added to the stage's logs from now on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from earmark.cluster.plan import Plan, PlannedJob, plan_path, read_plan
from earmark.cluster.slurm_logs import slurm_logs
from earmark.errors import InputError

_POLL_S = 0.5
_SCAN_SHARE = 0.05  # of the time at most: looking for new logs, and at those that have long been quiet
_SCAN_AT_MOST_S = 10.0  # and so often even then
_MOST_OPEN = 200  # handles kept open: those of the logs that changed last
_BLOCK_BYTES = 1 << 16
_HEAD_BYTES = 256  # by which a file that was written anew is told from one that has grown


def tail(run: str | None, stage: str | None, *, folder: Path, lines: int, follow: bool) -> None:
    """Print the end of the newest log of a stage or rule (None: of any), its job's own and Slurm's; then follow all.

    InputError if the run has no plan, or no such stage, or no log yet and `follow` is not set. Ends at Ctrl-C.
    """
    path = plan_path(run, folder)
    plan = read_plan(path)
    logs = _logs(_jobs(plan, stage), plan, folder)
    newest = max(logs, key=_mtime, default=None)
    if newest is None and not follow:
        name = stage or path.parent.name
        raise InputError(f"{name}: no job of it has written a log yet; `earmark status` shows what runs")
    shown = [] if newest is None else [newest, *_others_of_job(newest, plan, stage, folder)]
    followed = {log: FollowedLog.at_end(log) for log in (logs if follow else shown)}
    for log in shown:
        print(f"==> {log} <==")
        for line in _last_lines(log, followed[log].position, lines):
            print(line, flush=True)
    if follow:
        _follow(path, stage, folder, followed, shown[-1] if shown else None)


def _jobs(plan: Plan, stage: str | None) -> list[PlannedJob]:
    planned = [*plan.jobs, *plan.earlier]
    found = [job for job in planned if stage is None or stage in (job.stage, job.rule)]
    if not found:
        known = ", ".join(dict.fromkeys(name for job in planned for name in (job.stage, job.rule)))
        raise InputError(f"{stage}: the plan of this run has no such stage or rule; it has {known}")
    return found


def _logs(jobs: list[PlannedJob], plan: Plan, folder: Path) -> list[Path]:
    """The logs that there are: each job's own, and Slurm's of all its attempts."""
    own = [folder / job.log for job in jobs if job.log]
    return [log for log in own if log.is_file()] + [log for job in jobs for log in slurm_logs(job, plan, folder)]


def _others_of_job(log: Path, plan: Plan, stage: str | None, folder: Path) -> list[Path]:
    """The other half of a job's story: Slurm's newest log beside its own, or the other way round."""
    for job in _jobs(plan, stage):
        logs = _logs([job], plan, folder)
        if log in logs:
            own = folder / job.log
            others = sorted((other for other in logs if other != own), key=_mtime)
            return [other for other in (others[-1:] if log == own else [own]) if other.is_file()]
    return []


def _last_lines(log: Path, end: int, count: int) -> list[str]:
    """The last whole lines before the byte `end`."""
    if not count or not end:
        return []
    size = _BLOCK_BYTES
    with log.open("rb") as file:
        while True:
            start = max(0, end - size)
            file.seek(start)
            lines = file.read(end - start).splitlines()
            if start == 0 or len(lines) > count:
                return [line.decode("utf-8", errors="replace") for line in lines[-count:]]
            size *= 4


@dataclass
class FollowedLog:
    """One log that is read as it grows, is written anew, or is replaced by another file; no line is lost.

    A file that was replaced is read to its end first, through the handle that is still open. `position` is the byte up
    to which it was read; `head` holds its first bytes as they were then.
    """

    path: Path
    position: int = 0
    identity: tuple[int, int] | None = None  # device and inode
    head: bytes = b""
    changed_at: float = 0.0
    _file: BinaryIO | None = field(default=None, repr=False)
    _rest: bytes = field(default=b"", repr=False)  # of a line whose end is not written yet

    @classmethod
    def at_end(cls, path: Path) -> FollowedLog:
        """To be followed from the end of its last whole line on; from its start, if it is gone just now."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return cls(path)
        with file:
            start = max(0, file.seek(0, os.SEEK_END) - _BLOCK_BYTES)
            file.seek(start)
            position = start + file.read().rfind(b"\n") + 1
            file.seek(0)
            return cls(path, position, _identity(os.fstat(file.fileno())), file.read(min(position, _HEAD_BYTES)))

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def new_lines(self) -> Iterator[str]:
        """The lines that are whole since the last call. What a replaced file broke off in comes as a line, too."""
        now = _status(self.path)
        if self._file is not None and (now is None or _identity(now) != self.identity):
            yield from self._read(self._file)
            yield from self.broken_off()
            self.close()
        if now is None or (self._file is None and (_identity(now), now.st_size) == (self.identity, self.position)):
            return
        if self._file is None:
            try:
                self._file = self.path.open("rb", buffering=0)
            except FileNotFoundError:  # gone since
                return
        status = os.fstat(self._file.fileno())
        emptied = status.st_size < self.position or os.pread(self._file.fileno(), len(self.head), 0) != self.head
        if emptied or _identity(status) != self.identity:
            yield from self.broken_off()
            self.identity, self.position, self.head = _identity(status), 0, b""
        yield from self._read(self._file)

    def broken_off(self) -> Iterator[str]:
        """A last line without an end, if there is one."""
        if self._rest:
            yield self._rest.decode("utf-8", errors="replace")
        self._rest = b""

    def close(self) -> None:
        """Free the handle; the next new lines open it again."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _read(self, file: BinaryIO) -> Iterator[str]:
        file.seek(self.position)
        while block := file.read(_BLOCK_BYTES):
            self.position += len(block)
            self.changed_at = time.monotonic()
            self.head += block[: max(0, _HEAD_BYTES - len(self.head))]
            *whole, self._rest = (self._rest + block).split(b"\n")
            yield from (line.decode("utf-8", errors="replace") for line in whole)


def _status(path: Path) -> os.stat_result | None:
    """None where there is no such file: a retry removes a log and writes another."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _mtime(path: Path) -> float:
    status = _status(path)
    return status.st_mtime if status else 0.0


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _follow(
    plan_file: Path, stage: str | None, folder: Path, followed: dict[Path, FollowedLog], printed: Path | None
) -> None:
    next_scan = 0.0
    try:
        while True:
            began = time.monotonic()
            scans = began >= next_scan
            if scans:
                # The plan is read anew: another call of Snakemake may have begun.
                plan = read_plan(plan_file)
                for log in _logs(_jobs(plan, stage), plan, folder):
                    followed.setdefault(log, FollowedLog(log))
            # In between, those alone that are open: thousands of logs on a network file system take their time.
            for log, reader in followed.items():
                for line in reader.new_lines() if scans or reader.is_open else ():
                    if log != printed:
                        print(f"==> {log} <==")
                        printed = log
                    print(line, flush=True)
            open_ones = sorted((log for log in followed.values() if log.is_open), key=lambda log: log.changed_at)
            for quiet in open_ones[:-_MOST_OPEN]:
                quiet.close()
            if scans:
                took = time.monotonic() - began
                next_scan = began + took + min(took / _SCAN_SHARE, _SCAN_AT_MOST_S)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        for reader in followed.values():
            for line in reader.broken_off():
                print(line)
