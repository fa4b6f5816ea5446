"""Loaded by every Python that has this folder on PYTHONPATH: kills the whole run at the worst moment.

When the artifact named by KILL_BEFORE_RENAME is about to appear under its final name, its process group dies by
SIGKILL: Snakemake, the job and its workers together. Everything is written, nothing is renamed.
"""

import os
import signal

_doomed = os.environ.get("KILL_BEFORE_RENAME")
_rename, _replace = os.rename, os.replace


def _or_die(move):
    def moved(source, target, **options):
        if os.fspath(target).endswith(_doomed):
            os.killpg(0, signal.SIGKILL)
        return move(source, target, **options)

    return moved


if _doomed:
    os.rename, os.replace = _or_die(_rename), _or_die(_replace)
