"""Loaded by every Python that has this folder on PYTHONPATH: lets a test meet a job at a known moment.

AT names a moment: a file or folder is about to appear under a path that matches this pattern.
    HELD=file     the first job that comes there writes its id and node into the file and waits until `file`.go exists
    EAT_MB=2300   every job that comes there takes so much memory for some seconds
JOBS_SEEN=folder  every job leaves there the devices it was given, under its id
"""

import fnmatch
import os
import time

_rename, _replace, _mkdir = os.rename, os.replace, os.mkdir
_job = os.environ.get("SLURM_JOB_ID")
_at = os.environ.get("AT")


def _wait(held):
    try:
        os.close(os.open(f"{held}.taken", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    with open(f"{held}.new", "w") as file:  # noqa: PTH123
        file.write(f"{_job} {os.environ.get('SLURMD_NODENAME')}")
    _rename(f"{held}.new", held)
    while not os.path.exists(f"{held}.go"):  # noqa: PTH110
        time.sleep(0.2)


def _meet(path):
    path = os.fspath(path)
    if not isinstance(path, str) or not fnmatch.fnmatch(path, _at):
        return
    if "EAT_MB" in os.environ:
        eaten = bytearray(b"x") * (int(os.environ["EAT_MB"]) << 20)
        time.sleep(6)
        del eaten
    if "HELD" in os.environ:
        _wait(os.environ["HELD"])


def _moves(function):
    def moved(source, target, **options):
        _meet(target)
        return function(source, target, **options)

    return moved


def _made(path, *arguments, **options):
    _meet(path)
    return _mkdir(path, *arguments, **options)


if _job and _at:
    os.rename, os.replace, os.mkdir = _moves(_rename), _moves(_replace), _made
if _job and "JOBS_SEEN" in os.environ:
    with open(os.path.join(os.environ["JOBS_SEEN"], _job), "w") as _file:  # noqa: PTH118, PTH123
        _file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
