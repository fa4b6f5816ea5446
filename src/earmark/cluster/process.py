"""Processes named so that another one with the same number is not taken for them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = socket.gethostname()
_NAMESPACE_LINK = Path("/proc/self/ns/pid")
# Containers and other process namespaces number their processes anew, under the same host name.
NAMESPACE = str(_NAMESPACE_LINK.readlink()) if _NAMESPACE_LINK.is_symlink() else ""


@dataclass(frozen=True)
class ProcessName:
    """A process on a host. `born` is when it was started, in seconds since 1970: numbers are used again."""

    host: str
    namespace: str
    pid: int
    born: float

    @property
    def is_here(self) -> bool:
        """Whether it would be seen from here, if it lives."""
        return (self.host, self.namespace) == (HOST, NAMESPACE)

    def find(self) -> psutil.Process | None:
        """The process, if it lives on this host. A zombie does not live."""
        try:
            process = psutil.Process(self.pid)
            alive = self.is_here and abs(process.create_time() - self.born) < 1
            return process if alive and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def running(self) -> bool:
        return self.find() is not None

    @property
    def is_caller(self) -> bool:
        """Whether it is the calling process."""
        return self.pid == os.getpid() and self.running


def this_process() -> ProcessName:
    """The calling process."""
    return name_of(psutil.Process())


def name_of(process: psutil.Process) -> ProcessName:
    """The name of a process on this host. psutil.NoSuchProcess if it has ended."""
    return ProcessName(HOST, NAMESPACE, process.pid, process.create_time())
