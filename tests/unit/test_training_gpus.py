"""Which GPUs a training sees, on a machine without any: the environment of its processes tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from earmark.errors import ConfigError
from earmark.funasr_nano import environment
from earmark.torchrun import launch_folder, torchrun
from earmark.training_gpus import check_gpu_ids, check_visible, training_gpus

NAMES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
TELL = f"import os; print(*(os.environ.get(name) for name in {NAMES}))"


def train(gpu_ids: list[int] | None, **changes: Any) -> dict[str, Any]:
    return {"gpu_ids": gpu_ids, "processes": len(gpu_ids or [0]), "nodes": 1} | changes


@pytest.fixture(autouse=True)
def no_gpus_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def told() -> str:
    """What a program started now sees."""
    return subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("before", [None, "0,1"])
def test_a_training_and_what_it_starts_see_the_named_gpus_and_nothing_after_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, before: str | None
) -> None:
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with pytest.raises(ZeroDivisionError), training_gpus(train([3, 2])):
        assert told() == "3,2 PCI_BUS_ID"
        raise ZeroDivisionError
    assert told() == f"{before} None"
    assert ("train.gpu_ids has its way: 3,2" in caplog.text) == (before is not None)


def test_where_none_is_named_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with training_gpus(train(None, nodes=2, processes=4)):
        assert told() == "1 None"


def test_all_processes_of_torchrun_see_the_named_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tell_gpus.py").write_text(
        f"import os\nfrom pathlib import Path\nnames = {NAMES}\n"
        f"path = Path({str(tmp_path)!r}, os.environ['RANK'] + '.told')\n"
        "path.write_text(' '.join(str(os.environ.get(name)) for name in names))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with training_gpus(train([2, 3])), launch_folder(tmp_path / "model", 1) as folder:
        torchrun("tell_gpus", [], processes=2, threads=2, folder=folder)
    assert [path.read_text() for path in sorted(tmp_path.glob("*.told"))] == ["2,3 PCI_BUS_ID"] * 2


def test_funasr_sees_the_named_gpus(tmp_path: Path) -> None:
    python = tmp_path / "python"  # in the place of FunASR's interpreter
    python.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER" > {tmp_path}/told\n')
    python.chmod(0o755)
    with training_gpus(train([5])):
        environment.run(python, "train", {})
    assert (tmp_path / "told").read_text() == "5 PCI_BUS_ID\n"


@pytest.mark.parametrize(
    ("section", "on_slurm", "says"),
    [
        (
            train([2, 3], processes=1),
            False,
            r"names 2 GPUs \(\[2, 3\]\), but train.processes is 1; .* to 2",
        ),
        (train([2, 3], nodes=2), False, r"names GPUs of one machine, but train.nodes is 2"),
        (train([2, 3]), True, r"Slurm deals GPUs out to its jobs; set train.gpu_ids to null"),
    ],
)
def test_gpus_that_are_not_for_the_configuration_to_name_are_refused(
    section: dict[str, Any], on_slurm: bool, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_gpu_ids(section, on_slurm=on_slurm)


def test_inside_a_slurm_job_no_gpus_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(ConfigError, match="Slurm deals GPUs out"), training_gpus(train([0])):
        pass
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_an_id_that_the_machine_does_not_have_is_told() -> None:
    check_visible(None, 0)
    check_visible([0, 7], 2)
    with pytest.raises(ConfigError, match=r"train.gpu_ids is \[0, 7\], but of these PyTorch finds 1 on this machine"):
        check_visible([0, 7], 1)
