"""Trainings of Fun-ASR-Nano that go wrong, of which FunASR itself ends most with status 0: ours must not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from funasr_model import SECTION, funasr_python, tiny_model, write_lines

import earmark
from earmark.funasr_nano.model_folder import read_model
from earmark.funasr_nano.settings import merged, read_conf, training_conf
from earmark.funasr_nano.train import _kwargs, _prepare

PROVOCATIONS = Path(__file__).parent / "funasr_provocations.py"
# What each is given besides the lines and the model: keys over the configuration, keys over what FunASR gets.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unharmed": ({}, {}),
    "bf16_and_adaptor": (
        {"lora_only": False, "audio_adaptor_conf": {"freeze": False}, "llm_conf": {"llm_dtype": "bf16"}},
        {},
    ),
    "unfrozen_encoder": ({"lora_only": False}, {}),
    "lora_ignored": ({}, {}),
    "no_such_target": ({"llm_conf": {"lora_conf": {"target_modules": ["query"]}}}, {}),
    "nothing_to_train": ({"lora_only": False, "llm_conf": {"use_lora": False}}, {}),
    "fp16_adapters": ({}, {"llm_conf": {"llm_dtype": "fp16"}}),
    "fp16_unaudited": ({}, {"llm_conf": {"llm_dtype": "fp16"}}),
    "fp16_unwatched": ({}, {"llm_conf": {"llm_dtype": "fp16"}}),
    "nan_gradients": ({"dataset_conf": {"batch_size": 150}}, {}),
    "nan_saved": ({}, {}),
    "no_train_lines": ({}, {"dataset_conf": {"min_source_length": 7000}}),
    "too_long_for_batches": ({}, {"dataset_conf": {"max_token_length": 5}}),
    "killed": ({}, {}),
    "audio_gone": ({"dataset_conf": {"retry": 3}}, {}),
    "no_step": ({"train_conf": {"accum_grad": 64}}, {}),
    "activation_checkpoint": ({"llm_conf": {"activation_checkpoint": True}}, {}),
    "trusting": ({}, {"llm_conf": {"load_kwargs": {"trust_remote_code": True}}}),
    "trusting_unseen": ({}, {"llm_conf": {"load_kwargs": "${oc.decode:'{trust_remote_code: true}'}"}}),
    "pickled_code": ({}, {}),
}
# Trainings with a checkpoint after every batch, and in which batches each is killed.
OFTEN = {"max_epoch": 1, "save_checkpoint_interval": 1}
MIDWAY: dict[str, tuple[dict[str, Any], list[int]]] = {
    "by_tokens": ({"train_conf": OFTEN, "dataset_conf": {"batch_size": 150}}, [3, 5]),
    "by_tokens_unsorted": ({"train_conf": OFTEN, "dataset_conf": {"batch_size": 150, "sort_size": 0}}, [3, 5]),
    "by_lines": ({"train_conf": OFTEN, "dataset_conf": {"batch_type": "example", "batch_size": 2}}, [2, 3]),
}
# What is checked before: keys over the model's configuration, keys over the job.
CHECKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tracked_conf": (read_conf(Path(SECTION["conf"])), {}),
    "misspelt": (
        {"train_conf": {"max_epochs": 3}, "llm_conf": {"lora_conf": {"rank": 8}}, "optim_conf": {"learning_rate": 1}},
        {},
    ),
    "misspelt_elsewhere": (
        {"frontend_conf": {"n_mel": 80}, "tokenizer_conf": {"path": "x"}, "ctc_conf": {"blank": 0}},
        {},
    ),
    "given_by_earmark": ({"output_dir": "elsewhere"}, {}),
    "no_gpus": ({}, {"processes": 2}),
}  # fmt: skip


class Marked:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """How each case ended: exception, message, files that were saved. One process runs them all."""
    python = funasr_python()
    folder = tmp_path_factory.mktemp("guards")
    model = read_model(tiny_model(tmp_path_factory))
    train_lines, dev_lines = write_lines(folder, "train", 8), write_lines(folder, "dev", 3)
    jobs: dict[str, Any] = {}
    prepared: dict[str, Path] = {}
    for name, (over, given) in CASES.items():
        whole = merged(model.with_paths(), training_conf(SECTION | {"model_dir": str(model.path)}, over))
        prepared = prepared or _prepare(train_lines, dev_lines, whole, folder, 0.0)
        kwargs = _kwargs(merged(whole, given), prepared, folder / name, seed=0)
        if name == "audio_gone":
            lost = folder / "lost.jsonl"
            lost.write_text(prepared["train"].read_text(encoding="utf-8").replace("/train", "/gone"), encoding="utf-8")
            kwargs["train_data_set_list"] = str(lost)
        if name == "pickled_code":
            kwargs["init_param"] = str(folder / "code.pt")
            torch.save({"state_dict": {}, "code": Marked(folder / "marker")}, kwargs["init_param"])
        jobs[name] = {"kwargs": kwargs, "seed": 0}
    for name, (over, batches) in MIDWAY.items():
        whole = merged(model.with_paths(), training_conf(SECTION | {"model_dir": str(model.path)}, over))
        for part, batch in enumerate([*batches, -1]):
            jobs[f"{name}_{part}"] = {
                "kwargs": _kwargs(whole, prepared, folder / name, seed=0), "seed": 0, "kill_in_batch": batch,
            }  # fmt: skip
        jobs[name] = {"kwargs": _kwargs(whole, prepared, folder / f"{name}_whole", seed=0), "seed": 0}
    jobs["resumed"] = jobs["killed"]
    checked = {"model": jobs["unharmed"]["kwargs"], "processes": 1, "result": str(folder / "checked.json")}
    jobs |= {name: checked | {"conf": conf} | over for name, (conf, over) in CHECKS.items()}
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (folder / "path").mkdir()
    (folder / "path" / "earmark").symlink_to(Path(earmark.__file__).parent)
    done = subprocess.run(
        [python, PROVOCATIONS, folder / "jobs.json", folder / "results.json"],
        env={**os.environ, "PYTHONPATH": str(folder / "path"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not (folder / "marker").exists()
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_an_unharmed_training_passes_all_guards(ended: dict[str, list[Any]]) -> None:
    outcome, _, files = ended["unharmed"]
    assert outcome == "ended well"
    assert {"model.pt", "model.pt.best", "model.pt.avg2", "model.pt.ep1", "model.pt.ep2"} == set(files)


def test_bf16_adapters_train_beside_an_adaptor_that_is_not_frozen(ended: dict[str, list[Any]]) -> None:
    outcome, told, files = ended["bf16_and_adaptor"]
    assert outcome == "ended well", told
    assert files["model.pt"] != files["model.pt.ep1"]


def test_a_training_that_is_killed_while_it_saves_goes_on_to_the_same_models(ended: dict[str, list[Any]]) -> None:
    outcome, _, files = ended["killed"]
    assert outcome == "Killed"
    assert files["model.pt.writing"] == "torn"
    assert files["model.pt"] == files["model.pt.ep1"] != files["model.pt.ep2"]
    assert ended["resumed"] == ended["unharmed"]  # the same digests


@pytest.mark.parametrize("case", MIDWAY)
def test_a_training_that_is_killed_twice_within_an_epoch_trains_each_batch_once(
    ended: dict[str, Any], case: str
) -> None:
    parts = [f"{case}_{part}" for part in range(3)]
    assert [ended[part][0] for part in parts] == ["Killed", "Killed", "ended well"]
    assert len(ended["trained"][case]) >= 4
    assert [batch for part in parts for batch in ended["trained"][part]] == ended["trained"][case]


def test_activation_checkpoints_change_nothing_but_memory(ended: dict[str, list[Any]]) -> None:
    assert ended["activation_checkpoint"] == ended["unharmed"]  # the same digests


@pytest.mark.parametrize(
    ("case", "exception", "told"),
    [
        ("unfrozen_encoder", "WrongParameters", "must stay as it is, but would train"),
        ("lora_ignored", "WrongParameters", "no layer of the language model got an adapter"),
        ("no_such_target", "WrongParameters", "target_modules is ['query'], and its linear layers are called"),
        ("nothing_to_train", "WrongParameters", "nothing would train"),
        ("fp16_adapters", "WrongParameters", "would train in float16"),
        ("fp16_unaudited", "TrainingDiverged", "the loss is nan"),
        ("fp16_unwatched", "TrainingDiverged", "the model holds NaN or infinity"),
        ("nan_gradients", "TrainingDiverged", "6 steps on end"),
        ("no_train_lines", "InputError", "drop every line of train"),
        ("too_long_for_batches", "InputError", "drop every line of train"),
        ("audio_gone", "InputError", "none of 3 lines in a row could be used"),
        ("no_step", "ConfigError", "train_conf.accum_grad is 64, but epoch 1 has"),
        ("trusting", "ConfigError", "llm_conf.load_kwargs.trust_remote_code: would run code"),
        ("trusting_unseen", "ConfigError", "llm_conf.load_kwargs"),
        ("pickled_code", "UnsafeWeights", "code.pt: does not load as weights alone"),
    ],
)
def test_what_goes_wrong_ends_the_training_with_the_reason_and_saves_nothing(
    ended: dict[str, list[Any]], case: str, exception: str, told: str
) -> None:
    outcome, message, files = ended[case]
    assert (outcome, told in message, files) == (exception, True, {}), (outcome, message, files)


def test_nan_in_any_saved_file_is_found_and_the_file_named(ended: dict[str, list[Any]]) -> None:
    outcome, message, _ = ended["nan_saved"]
    assert outcome == "BadCheckpoint"
    assert "model.pt.ep1: NaN or infinity in 1 of" in message
    assert "lora_A" in message


def test_keys_that_the_installed_funasr_does_not_read_are_told_with_the_nearest_it_does(
    ended: dict[str, list[Any]],
) -> None:
    assert ended["tracked_conf"][0] == "ended well", ended["tracked_conf"]
    outcome, message, _ = ended["misspelt"]
    assert outcome == "ConfigError"
    for told in (
        "'train_conf.max_epochs'; did you mean 'train_conf.max_epoch'?",
        "'llm_conf.lora_conf.rank'; there are lora_alpha, lora_dropout, r, target_modules",
        "'optim_conf.learning_rate'; there are amsgrad, betas",
    ):
        assert told in message
    outcome, message, _ = ended["misspelt_elsewhere"]
    assert outcome == "ConfigError"
    assert "'frontend_conf.n_mel'; did you mean 'frontend_conf.n_mels'?" in message
    assert "'tokenizer_conf.path'; there are init_param_path" in message
    assert "'ctc_conf.blank'; did you mean 'ctc_conf.blank_id'?" in message
    assert "'output_dir' (Earmark sets it)" in ended["given_by_earmark"][1]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="this machine has the GPUs")
def test_more_processes_than_gpus_are_refused(ended: dict[str, list[Any]]) -> None:
    outcome, message, _ = ended["no_gpus"]
    assert outcome == "ConfigError"
    assert "train.processes is 2, but this job has" in message
