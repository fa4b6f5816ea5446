"""Retrievers whose terms go through a pretrained model, by configuration: trained, indexed, measured, searched."""

from __future__ import annotations

import json
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace


@pytest.fixture(scope="module")
def config(repo: Path, small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.mktemp("bases") / "tiny_qwen2_audio"
    command = [sys.executable, str(repo / "benchmarks/tiny_qwen2_audio_instruct.py"), str(base)]
    subprocess.run([*command, "--hidden-size", "64", "--layers", "2"], check=True, timeout=120)
    schedule = {"epochs": 2, "learning_rate": 0.002, "head_lr_factor": 10, "sub_batch_size": 8}
    pooled = {"towers": "qwen2_audio", "objective": {"max_surfaces": 16, "max_phrases": 16}}
    return {
        **small_config,
        "retrieval": {"encoder": str(base), "random_control": False, "interaction": "pooled", "pooled": pooled},
        "train": {"schedule": schedule},
        "evaluate": {**small_config["evaluate"], "held_out_chunks": 0},  # the chain has it
    }


@pytest.fixture(scope="module")
def evaluated(
    chain: Path, config: dict[str, Any], run_snakemake: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("language_model") / "run"
    shutil.copytree(chain, folder, symlinks=True)
    run = run_snakemake(folder, configfile=config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    for rule in ("encode", "train_backend", "index_backend", "evaluate_backend", "report"):
        assert f"{rule} " in run.output, rule
    assert "align_shard " not in run.output
    return folder


def test_it_is_trained_indexed_measured_and_searched(evaluated: Path) -> None:
    data = evaluated / "data/small"
    audit = json.loads((data / "models/retriever/audit.json").read_text())
    trained = {name for name, part in audit.items() if part["trainable"]}
    assert trained == {"language_model", "audio_projection", "text_projection"}
    figures = json.loads((data / "evaluation/retriever/metrics.json").read_text())
    assert figures["test"]["retrieval"]["seen"]["n"] > 0 and (data / "index/retriever/terms.faiss").is_file()
    recording = next((evaluated / "data/small/export/wavs").rglob("*.wav"))
    command = [str(Path(sys.executable).with_name("earmark")), "search", str(recording), "--run", str(data), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_what_the_other_towers_say_trains_nothing_again(
    evaluated: Path, config: dict[str, Any], run_snakemake: Callable
) -> None:
    retrieval = config["retrieval"]
    pooled = {
        **retrieval["pooled"],
        "embedding_dim": 128,
        "text_tower": {"dropout": 0.1},
        "text_model": {"source": "another"},
    }
    other = {**config, "retrieval": {**retrieval, "pooled": pooled}}
    run = run_snakemake(evaluated, "evaluate", configfile=other, arguments=("--dry-run",))
    assert run.status == 0 and "Nothing to be done" in run.output, run.output[-2000:]


def test_a_text_model_fused_with_spelling_is_trained_on_the_same_features(
    chain: Path, small_config: dict[str, Any], run_snakemake: Callable, tmp_path: Path
) -> None:
    source = tmp_path / "text_model"
    modules = [StaticEmbedding(_letters(), embedding_dim=12)]
    SentenceTransformer(modules=modules, device="cpu").save(str(source), create_model_card=False)
    folder = tmp_path / "run"
    shutil.copytree(chain, folder, symlinks=True)
    pooled = {"towers": "fused", "text_model": {"source": str(source)}, "objective": {"learn_temperature": True}}
    config = {
        **small_config,
        "retrieval": {"random_control": False, "interaction": "pooled", "pooled": pooled},
        "evaluate": {**small_config["evaluate"], "held_out_chunks": 0},
    }
    run = run_snakemake(folder, "evaluate", configfile=config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    assert "train_backend " in run.output and "encode " not in run.output
    audit = json.loads((folder / "data/small/models/retriever/audit.json").read_text())
    trained = {name for name, part in audit.items() if part["trainable"]}
    assert trained == {"audio_head", "text_projection", "spelling_tower"} and "text_model" in audit
    figures = json.loads((folder / "data/small/evaluation/retriever/metrics.json").read_text())
    assert figures["test"]["retrieval"]["seen"]["n"] > 0


def _letters() -> Tokenizer:
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(string.ascii_lowercase)}, []))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def test_every_stage_that_runs_the_language_model_asks_for_a_gpu_and_memory(
    tmp_path: Path, config: dict[str, Any], asked_resources: Callable
) -> None:
    asked = asked_resources(tmp_path, "slurm", config)
    for rule in ("train_backend", "index_backend", "evaluate_backend"):
        assert asked[rule]["slurm_partition"] == "gpu" and int(asked[rule]["mem_mb"]) > 20_000
    asked = asked_resources(tmp_path, "slurm", {**config, "cluster": {"gpu_partition": None}})
    for rule in ("train_backend", "index_backend", "evaluate_backend"):  # in float32
        assert asked[rule]["slurm_partition"] == "cpu" and int(asked[rule]["mem_mb"]) > 40_000
