"""kill_node.py FOLDER NODE, inside the cluster: kill a node's slurmd, then its job steps with all their processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

folder, node = Path(sys.argv[1]), sys.argv[2]
os.kill(int((folder / f"run/slurmd-{node}.pid").read_text()), signal.SIGKILL)

parents, doomed = {}, set()
for process in Path("/proc").glob("[0-9]*"):
    try:
        parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        if f"SLURMD_NODENAME={node}".encode() in (process / "environ").read_bytes().split(b"\0"):
            doomed.add(int(process.name))
    except (FileNotFoundError, ProcessLookupError):
        continue
# Above a job's processes stands its slurmstepd, which does not bear the node's name; above that, the first process.
steps = {parents[pid] for pid in doomed} - {0, 1, os.getpid()}
for pid in [*steps, *doomed]:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        continue
