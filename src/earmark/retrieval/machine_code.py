"""Functions of plain arrays as machine code, by numba, kept for later processes."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import platform
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config

log = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()  # while numba's setting is another


def compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function to be compiled, at its first call, for arguments of each of `signatures` (numba's notation).

    What was compiled is kept in the user's cache, in a folder for each machine. numba's cache knows no locks, and two
    processes may each take the other's file for their own: so it must not matter whose it is. On one machine, with all
    signatures compiled in their order, it does not. Where nothing can be kept, each process compiles for itself.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def machine_code() -> Callable[..., Any]:
            with _one_at_a_time:
                before = config.CACHE_DIR  # type: ignore[attr-defined]
                try:
                    # Where it cannot write, numba would take the package's own folder, which machines may share.
                    folder = cache_folder()
                    folder.mkdir(parents=True, exist_ok=True)
                    tempfile.TemporaryFile(dir=folder).close()
                    config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
                    return njit(list(signatures), cache=True, nogil=True)(function)
                except (OSError, EOFError, RuntimeError, pickle.PickleError) as error:
                    log.info("what is compiled of %s is not kept: %s", function.__name__, error)
                    return njit(list(signatures), nogil=True)(function)
                finally:
                    config.CACHE_DIR = before  # type: ignore[attr-defined]

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return machine_code()(*arguments)

        return call

    return decorate


def cache_folder() -> Path:
    """Where this machine keeps what was compiled: in $XDG_CACHE_HOME, or else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "earmark" / "compiled" / (platform.node() or "machine")
