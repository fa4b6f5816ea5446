"""What tests of Fun-ASR-Nano share: FunASR's environment, a tiny model directory, and lines to train it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

REPO = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("EARMARK_FUNASR_PYTHON", REPO / ".venv-funasr/bin/python"))
WORDS = ["alpha", "bravo", "charlie", "delta", "echo"]
SECTION = {
    "python": str(PYTHON),
    "conf": str(REPO / "conf/train_funasr_nano.yaml"),
    "train_conf": {"max_epoch": 2, "log_interval": 1, "avg_nbest_model": 2},
    "dataset_conf": {"batch_size": 800, "num_workers": 0},
    "optim_conf": {"lr": 0.01},
    "scheduler_conf": {"warmup_steps": 4},
}


def funasr_python() -> Path:
    """The interpreter of FunASR's environment; the test is skipped without, or fails where it must be there."""
    if not PYTHON.exists():
        told = f"{PYTHON} is not there: make funasr, or set EARMARK_FUNASR_PYTHON"
        if os.environ.get("EARMARK_NEEDS_FUNASR") == "1":
            pytest.fail(told)
        pytest.skip(told)
    return PYTHON


def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Fun-ASR-Nano, made once by the tracked script."""
    folder = tmp_path_factory.getbasetemp() / "tiny_fun_asr_nano"
    made = subprocess.run(
        [sys.executable, REPO / "benchmarks/tiny_fun_asr_nano.py", folder, "--python", funasr_python()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def write_lines(folder: Path, split: str, n_lines: int) -> Path:
    """Tones, each with a word: older lines, without lengths."""
    rng = np.random.default_rng(n_lines)
    rows: list[dict[str, Any]] = []
    for number in range(n_lines):
        seconds = np.arange(int(16000 * (0.6 + 0.05 * number))) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * (number % 5)) * seconds) + 0.01 * rng.standard_normal(len(seconds))
        wav = folder / f"{split}{number}.wav"
        soundfile.write(wav, tone.astype(np.float32), 16000)
        rows.append({"key": f"{split}{number}", "source": str(wav), "target": WORDS[number % 5]})
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
