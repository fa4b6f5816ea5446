"""The doctor's look at Lustre's quotas: `quota` does not know them, statvfs tells the whole file system's room."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from earmark.cluster.doctor import Finding, ok, problem, warning

_TIMEOUT_S = 60
# used, quota, limit, grace: of blocks, then of files. A star: over the quota; brackets: a server did not answer.
_SIZE = r"\[?(\d+(?:\.\d+)?)([kKMGTPE]?)\]?\*?"
_ROW = re.compile(r"(?<!\S)" + r"\s+".join([_SIZE, _SIZE, _SIZE, r"(\S+)"] * 2) + r"(?!\S)")
_POWER = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


@dataclass(frozen=True)
class Quota:
    """Used so much of a quota, which may be passed for a time of grace, and of a limit, which may not. 0: none."""

    used: float
    quota: float
    limit: float
    grace: str

    @property
    def left(self) -> float | None:
        """Up to where nothing happens; None where there is no end."""
        ends = [end for end in (self.quota, self.limit) if end]
        return min(ends) - self.used if ends else None


def lustre_quotas(folders: Iterable[Path], gb: tuple[float, float], files: tuple[float, float]) -> Iterator[Finding]:
    """What the user may still have where `folders` lie on Lustre; nothing to say elsewhere, or without `lfs`.

    `gb` and `files`: with less than the first left it is a problem, with less than the second a warning.
    """
    if shutil.which("lfs") is not None:
        for mount in dict.fromkeys(map(_mount, folders)):
            if mount is not None:
                yield from _quota_on(mount, gb, files)


def _quota_on(mount: Path, gb: tuple[float, float], files: tuple[float, float]) -> Iterator[Finding]:
    command = ["lfs", "quota", "-hu", _user(), str(mount)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield warning("quota", f"{' '.join(command)}: no answer within {_TIMEOUT_S} s", "a file server may be down")
        return
    quotas = parse(done.stdout)
    if quotas is None:
        said = ([*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines()] or ["nothing"])[0]
        yield warning("quota", f"{' '.join(command)} says {said}", "look yourself how much room you have left")
        return
    room, number = quotas
    yield _judged(f"{mount}: GB", room, *gb)
    yield _judged(f"{mount}: files", number, *files)


def parse(text: str) -> tuple[Quota, Quota] | None:
    """The quotas of room, in GB, and of the number of files, in what `lfs quota` printed; None where there are none.

    A name that is long stands on a line of its own; sizes without a unit are in kB.
    """
    found = _ROW.search(text)
    if found is None:
        return None
    cells = found.groups()
    gb = [float(cells[i]) * 1024 ** _POWER[cells[i + 1] or "k"] / 1e9 for i in (0, 2, 4)]
    files = [float(cells[i]) * 1000 ** _POWER.get(cells[i + 1], 0) for i in (7, 9, 11)]
    return Quota(gb[0], gb[1], gb[2], cells[6]), Quota(files[0], files[1], files[2], cells[13])


def _judged(subject: str, quota: Quota, least: float, scarce: float) -> Finding:
    ends = ", ".join(f"{name} {end:,.0f}" for name, end in (("quota", quota.quota), ("limit", quota.limit)) if end)
    told = f"{subject} used {quota.used:,.0f} ({ends or 'no quota'})"
    remedy = "delete something, ask for more, or set data_dir (or TMPDIR) to another file system"
    if quota.left is None or quota.left >= scarce:
        return ok("quota", told)
    if quota.limit and quota.limit - quota.used < least:
        return problem("quota", told, remedy)
    if quota.left <= 0:  # of the quota, not of the limit
        over = f"{told}: over the quota, grace {quota.grace}"
        known = re.search(r"\d", quota.grace) is not None
        return warning("quota", over, remedy) if known else problem("quota", over, remedy)
    return warning("quota", told, remedy)


def _mount(folder: Path) -> Path | None:
    """Where the Lustre that holds `folder` is mounted; None where it lies on another file system."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    mount = next((path for path in (folder, *folder.parents) if path in mounts), None)
    return mount if mount is not None and mounts[mount] == "lustre" else None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may have no name for it
        return str(os.getuid())
