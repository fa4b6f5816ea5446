"""What the demo costs: wall time and peak memory of the whole process tree, from nothing to a report.

    make setup && make clean && .venv/bin/python benchmarks/demo_cost.py

Memory is the sum of proportional set sizes (PSS: shared pages are counted once), sampled four times a second. Setting
up .venv is not counted: it is mostly downloads.
"""

from __future__ import annotations

import subprocess
import time

import psutil

SAMPLE_S = 0.25


def tree_pss_mb(root: psutil.Process) -> float:
    """Proportional set size of a process and all its descendants, in MB; processes that just ended count nothing."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return total / 1e6


def main() -> None:
    started = time.monotonic()
    demo = subprocess.Popen(["make", "demo"])
    root = psutil.Process(demo.pid)
    peak_mb = 0.0
    while demo.poll() is None:
        try:
            peak_mb = max(peak_mb, tree_pss_mb(root))
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_S)
    minutes = (time.monotonic() - started) / 60
    cost = f"{minutes:.1f} min on {psutil.cpu_count()} cores, {peak_mb:,.0f} MB at the peak"
    print(f"\nmake demo: exit {demo.wait()}, {cost}")


if __name__ == "__main__":
    main()
