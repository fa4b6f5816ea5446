"""Fun-ASR-Nano beside the retriever: trained by FunASR, transcribing, measured and reported in the same workflow."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def config(repo: Path, small_config: dict[str, Any], funasr_python: Path, tiny_fun_asr_nano: Path) -> dict[str, Any]:
    """The small configuration with a tiny random Fun-ASR-Nano, two epochs of LoRA."""
    return {
        **small_config,
        "train": {**small_config["train"], "backends": ["retriever", "funasr_nano"]},
        "funasr_nano": {
            "model_dir": str(tiny_fun_asr_nano),
            "python": str(funasr_python),
            "conf": str(repo / "conf/train_funasr_nano.yaml"),
            "train_conf": {"max_epoch": 2, "log_interval": 1, "keep_nbest_models": 2, "avg_nbest_model": 2},
            "dataset_conf": {"num_workers": 0, "batch_size": 3000},
            "optim_conf": {"lr": 0.01},
            "scheduler_conf": {"warmup_steps": 5},
            "transcribe_batch_size": 32,
            "max_new_tokens": 6,
        },
    }


@pytest.fixture(scope="module")
def transcribed(
    chain: Path, config: dict[str, Any], run_snakemake: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The finished run with Fun-ASR-Nano added: nothing that stood there is made again but the report."""
    folder = tmp_path_factory.mktemp("transcribed") / "run"
    shutil.copytree(chain, folder, symlinks=True)
    run = run_snakemake(folder, "train", configfile=config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    assert "transcribe_funasr_nano " not in run.output
    run = run_snakemake(folder, configfile=config, timeout=600)
    assert run.status == 0, run.output[-4000:]
    for rule in ("transcribe_funasr_nano", "evaluate_funasr_nano", "report"):
        assert f"{rule} " in run.output, rule
    for rule in ("train_funasr_nano", "train_backend", "export_split", "encode", "evaluate_backend"):
        assert f"{rule} " not in run.output, rule
    return folder


def test_two_epochs_leave_a_model_and_an_account_of_its_data(transcribed: Path) -> None:
    model = transcribed / "data/small/models/funasr_nano"
    exported = {
        split: sum(1 for _ in (transcribed / f"data/small/export/funasr_nano/{split}.jsonl").open(encoding="utf-8"))
        for split in ("train", "dev")
    }
    report = json.loads((model / "data_report.json").read_text())
    assert {split: (report[split]["input"], report[split]["kept"]) for split in exported} == {
        split: (count, count) for split, count in exported.items()
    }
    lines = [json.loads(line) for line in (model / "train_metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert all(map(math.isfinite, losses))
    assert max(line["epoch"] for line in lines) == 2
    parts = json.loads((model / "audit.json").read_text())["parts"]
    assert {name for name, part in parts.items() if part["trainable"]} == {"lora"}
    which = json.loads((model / "which_model.json").read_text())
    assert (model / which["use"]).is_file()
    assert not list(model.parent.glob(".*"))


def test_every_dev_and_test_chunk_is_transcribed_and_measured_as_such(transcribed: Path) -> None:
    data = transcribed / "data/small"
    for split in ("dev", "test"):
        asked = [
            json.loads(line)["messages"][-2]["content"] for line in (data / f"export/funasr_nano/{split}.jsonl").open()
        ]
        answers = pq.read_table(data / f"answers/funasr_nano/{split}.parquet")
        chunks = [Path(content.partition("!")[2].removesuffix("<|endofspeech|>")).stem for content in asked]
        assert answers["chunk_id"].to_pylist() == chunks
        assert answers["text"].null_count == 0  # what so small and random a model says is often nothing
    metrics = json.loads((data / "evaluation/funasr_nano/metrics.json").read_text())
    # Whatever export.task says (here spot_terms): Fun-ASR-Nano transcribes.
    assert metrics["task"] == "transcribe"
    test = metrics["test"]
    assert test["transcript"]["n"] == test["n_term"] + test["n_no_term"] == len(chunks)
    assert test["transcript"]["wer"] > 0
    assert test["transcript"]["cer"] > 0
    assert test["recall"]["seen"]["n"] + test["recall"]["unseen"]["n"] == test["n_term"] > 0
    assert test["retriever"]["n_term"] == test["n_term"]


def test_report_and_figures_show_it_beside_the_retriever(transcribed: Path) -> None:
    page = (transcribed / "data/small/report.html").read_text()
    start = page.index('<h2 id="answers">')
    answers = page[start : page.index("<h2", start + 1)]
    assert answers.count("<td>funasr_nano</td>") == answers.count("<td>retriever</td>") == 3
    assert "word error rate" in answers
    command = [str(Path(sys.executable).with_name("earmark")), "figures", "data/small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=transcribed)
    assert done.returncode == 0, done.stderr
    told = done.stdout[done.stdout.index("funasr_nano, answering (transcribe): test speakers") :]
    assert "as transcripts: word error rate" in told


def test_a_second_run_has_nothing_to_do_and_other_transcripts_train_nothing(
    transcribed: Path, config: dict[str, Any], run_snakemake: Callable
) -> None:
    run = run_snakemake(transcribed, configfile=config)
    assert "Nothing to be done" in run.output
    longer = {**config, "funasr_nano": {**config["funasr_nano"], "max_new_tokens": 7}}
    run = run_snakemake(transcribed, configfile=longer, arguments=("--dry-run",))
    assert "transcribe_funasr_nano " in run.output
    assert "train_funasr_nano " not in run.output
    other = {**config, "funasr_nano": {**config["funasr_nano"], "llm_conf": {"lora_conf": {"r": 8}}}}
    run = run_snakemake(transcribed, configfile=other, arguments=("--dry-run",))
    assert "train_funasr_nano " in run.output
    assert "train_backend " not in run.output


def test_an_empty_export_fails_the_training_and_says_so(
    transcribed: Path, config: dict[str, Any], run_snakemake: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(transcribed, folder, symlinks=True)
    lines = folder / "data/small/export/funasr_nano/train.jsonl"
    lines.write_text("", encoding="utf-8")
    run = run_snakemake(folder, "data/small/models/funasr_nano", configfile=config, arguments=("--retries", "0"))
    assert run.status == 1
    assert not (folder / "data/small/models/funasr_nano").exists()
    last = (folder / "logs/small/train/funasr_nano.log").read_text().splitlines()[-1]
    assert f"{lines.relative_to(folder)}: holds no line, so there is nothing to train on" in last


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"export": {"formats": ["conversation"]}}, "but export.formats is ['conversation']; add funasr_nano to it"),
        ({}, "funasr_nano.model_dir is not set; give the folder of a Fun-ASR-Nano, or"),
        ({"train": {"backends": ["funasr_nano"]}}, "train.backends.0: 'retriever' was expected"),
        ({"funasr_nano": {"model": "x"}}, "unknown key 'funasr_nano.model'; did you mean 'funasr_nano.model_dir'?"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_in_a_sentence(
    tmp_path: Path, small_config: dict[str, Any], run_snakemake: Callable, changed: dict[str, Any], told: str
) -> None:
    config = {**small_config, "train": {"backends": ["retriever", "funasr_nano"]}, **changed}
    run = run_snakemake(tmp_path, configfile=config, arguments=("--dry-run",))
    assert run.status == 1
    assert told in run.output
