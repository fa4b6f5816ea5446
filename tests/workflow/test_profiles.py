"""The profiles, and where the section `cluster` sends the jobs. Nothing is submitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("profile", ["slurm", "profiles/slurm"])
def test_slurms_profile_works_under_both_names_and_gpu_stages_ask_for_a_gpu(
    tmp_path: Path, small_config: dict[str, Any], asked_resources: Callable, profile: str
) -> None:
    config = {**small_config, "evaluate": {"transcripts": "bundled:whisper-tiny.en"}}
    asked = asked_resources(tmp_path, profile, config)
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
    tmp_path: Path, small_config: dict[str, Any], asked_resources: Callable
) -> None:
    site = {"cluster": {"cpu_partition": "standard", "gpu_partition": None, "account": "words"}}
    asked = asked_resources(tmp_path, "slurm", small_config | site)
    submitted = {rule: resources for rule, resources in asked.items() if resources.get("mem_mb")}
    assert {"encode", "train_backend", "align_shard"} <= set(submitted)
    for resources in submitted.values():
        assert (resources["slurm_partition"], resources["slurm_account"]) == ("standard", "words")
        assert "gres" not in resources


def test_a_kind_of_gpu_one_for_each_process_and_the_default_partition(
    tmp_path: Path, small_config: dict[str, Any], asked_resources: Callable
) -> None:
    site = {"cluster": {"cpu_partition": None, "gpu_partition": "a100", "gpu_gres": "gpu:a100:1"}}
    asked = asked_resources(tmp_path, "slurm", small_config | site | {"train": {"processes": 2}})
    assert (asked["encode"]["slurm_partition"], asked["encode"]["gres"]) == ("a100", "gpu:a100:1")
    assert asked["train_backend"]["gres"] == "gpu:a100:2"
    assert "slurm_partition" not in asked["align_shard"]
