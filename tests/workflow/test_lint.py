"""The workflow against Snakemake's own linter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Findings that do not apply here, and why.
NOT_APPLICABLE = {
    # Every rule runs in the one environment that `make setup` pins; a conda environment or container per rule would
    # be a second, unpinned copy of it. Rules that need what pip cannot bring get their own environment.
    "Specify a conda environment or container for each rule.",
}


def test_snakemake_lint_finds_nothing_that_applies(repo: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--lint"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo, timeout=120)
    findings = set(re.findall(r"^    \* (.+?):?$", done.stderr, re.MULTILINE))
    assert findings, f"the linter said nothing that this test can read: {done.stderr[-1000:]}"
    assert findings <= NOT_APPLICABLE, findings - NOT_APPLICABLE
