"""The profiles, and where the section `cluster` sends the jobs. Nothing is submitted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# A dry run tells the message of a rule that has one, and not what its jobs ask for: here it is to tell that.
TELL_RESOURCES = """
from snakemake.cli import main
from snakemake.logging import DefaultFormatter
DefaultFormatter.format_job_info = lambda self, said: "\\n".join(self._format_job_info(said))
main()
"""


def _resources(repo: Path, folder: Path, profile: str, config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What a dry run, started in the repository as README has it, says that the jobs of each rule ask for."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", TELL_RESOURCES, "--profile", profile, "--dry-run", "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    jobs = re.split(r"^(?:local)?rule (\w+):$", said, flags=re.MULTILINE)[1:]
    found = {}
    for rule, text in zip(jobs[::2], jobs[1::2], strict=True):
        listed = re.search(r"^ +resources: (.+)$", text, re.MULTILINE)
        found[rule] = dict(pair.split("=", 1) for pair in listed[1].split(", ")) if listed else {}
    return found


@pytest.mark.parametrize("profile", ["slurm", "profiles/slurm"])
def test_slurms_profile_works_under_both_names_and_gpu_stages_ask_for_a_gpu(
    repo: Path, tmp_path: Path, small_config: dict[str, Any], profile: str
) -> None:
    config = {**small_config, "evaluate": {"transcripts": "bundled:whisper-tiny.en"}}
    asked = _resources(repo, tmp_path, profile, config)
    on_gpu = {rule for rule, resources in asked.items() if resources.get("slurm_partition") == "gpu"}
    assert {"encode", "train_backend", "transcribe"} <= on_gpu
    assert {asked[rule]["gres"] for rule in on_gpu} == {"gpu:1"}
    on_cpu = {rule for rule, resources in asked.items() if resources.get("slurm_partition") == "cpu"}
    assert {"corpus_shard", "align_shard", "chunks_shard", "index_backend", "evaluate_backend"} <= on_cpu
    assert not [rule for rule in on_cpu if "gres" in asked[rule]]
    # Two snakemakes run inside each job and take 130 MB each.
    assert not {rule: found for rule in on_cpu | on_gpu if (found := int(asked[rule]["mem_mb"])) < 1000}
    assert not [rule for rule, resources in asked.items() if "slurm_account" in resources]


def test_a_site_without_gpus_and_with_an_account_changes_one_section(
    repo: Path, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    site = {"cluster": {"cpu_partition": "standard", "gpu_partition": None, "account": "words"}}
    asked = _resources(repo, tmp_path, "slurm", small_config | site)
    submitted = {rule: resources for rule, resources in asked.items() if resources.get("mem_mb")}
    assert {"encode", "train_backend", "align_shard"} <= set(submitted)
    for resources in submitted.values():
        assert (resources["slurm_partition"], resources["slurm_account"]) == ("standard", "words")
        assert "gres" not in resources


def test_a_kind_of_gpu_one_for_each_process_and_the_default_partition(
    repo: Path, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    site = {"cluster": {"cpu_partition": None, "gpu_partition": "a100", "gpu_gres": "gpu:a100:1"}}
    asked = _resources(repo, tmp_path, "slurm", small_config | site | {"train": {"processes": 2}})
    assert (asked["encode"]["slurm_partition"], asked["encode"]["gres"]) == ("a100", "gpu:a100:1")
    assert asked["train_backend"]["gres"] == "gpu:a100:2"
    assert "slurm_partition" not in asked["align_shard"]
