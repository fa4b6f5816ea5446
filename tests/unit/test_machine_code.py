"""Compiled functions are kept for later processes where they can be, and do without where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
import numpy as np
logging.basicConfig(level=logging.INFO, format="%(message)s")
from earmark.retrieval import compiled_paths
from earmark.retrieval.machine_code import cache_folder
one, two = np.empty(3, np.float32), np.empty((3, 3), np.float32)
compiled_paths.best_moments(np.zeros((4, 4), np.float32), one, two)
print(one.tolist(), cache_folder())
"""


def searched(cache: Path) -> str:
    """What a process prints that compiles into a cache there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return run.stdout + run.stderr


def kept(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}


def test_what_was_compiled_serves_the_next_process(tmp_path: Path) -> None:
    said = searched(tmp_path)
    assert said.startswith("[0.0, 0.0, 0.0]") and "is not kept" not in said
    files = kept(tmp_path)
    assert len(files) == 1
    assert searched(tmp_path) == said
    assert kept(tmp_path) == files


@pytest.mark.parametrize("broken", ["no folder", "an index cut off"])
def test_a_cache_that_cannot_be_used_stops_nobody(tmp_path: Path, broken: str) -> None:
    cache = tmp_path / "cache"
    if broken == "no folder":
        cache.write_text("a file")
    else:
        searched(cache)
        (index,) = cache.rglob("*.nbi")
        index.write_bytes(b"")
    said = searched(cache)
    assert "[0.0, 0.0, 0.0]" in said
    assert "what is compiled of best_moments is not kept" in said
