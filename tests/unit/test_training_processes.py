"""Training in two processes is training in one: the same losses, the same model, and one that may be killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import RECIPES, SETTINGS, checksums, make_inputs, training

from earmark.errors import EarmarkError
from earmark.retrieval.launch import train_in_processes
from earmark.retrieval.pooled_loss import Margin
from earmark.retrieval.recipes import AlignmentRecipe, PooledRecipe

# Five chunks a step: the shares of two processes are not alike, and the last batch of 24 chunks holds four.
SCHEDULE = replace(SETTINGS["schedule"], epochs=2, batch_size=5)
NEGATIVES = {"rome": ["oslo", "bonn"], "oslo": ["rome"], "kyoto": ["quito", "lima"], "quito": ["kyoto"]}


def still(interaction: str) -> AlignmentRecipe | PooledRecipe:
    """The recipe with all its losses on, without dropout: which process hears which chunk is then no matter."""
    recipe = RECIPES[interaction]
    head = {**recipe.head, "dropout": 0.0}
    if isinstance(recipe, AlignmentRecipe):
        return replace(recipe, head=head)
    tower = {**recipe.tower, "dropout": 0.0}
    margins = {"no_term": Margin(0.15, 0.5), "hard_negative": Margin(0.1, 0.2)}
    learned = {"hard_negatives": NEGATIVES, "max_negatives": 2, "learn_temperature": True}
    return replace(recipe, head=head, tower=tower, **margins, **learned)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def kill_one() -> None:
    for process in psutil.Process().children(recursive=True):
        if process.environ().get("RANK") == "1":
            process.kill()


def tell_all_to_end() -> None:
    """As a Slurm job is told, or by hand, where this process alone hears it."""
    os.kill(os.getpid(), signal.SIGTERM)


def at_second_checkpoint(checkpoints: Path, ends: Callable[[], None]) -> None:
    """When the second checkpoint comes, the first is whole."""
    while len(list(checkpoints.glob("*/*/trainer_state.json"))) < 2:
        time.sleep(0.01)
    ends()


def lines(model: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (model / "train_metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("interaction", ["alignment", "pooled"])
def test_two_processes_end_with_the_losses_and_the_model_of_one(inputs, tmp_path, interaction):
    for count in (1, 2):
        settings = training(inputs, tmp_path / str(count), still(interaction), schedule=SCHEDULE)
        train_in_processes(count, **settings | {"threads": 2})
    one, two = lines(tmp_path / "1"), lines(tmp_path / "2")
    assert len(one) == len(two) == 2 * (5 + 1)  # each step, and each epoch's end
    for alone, together in zip(one, two, strict=True):
        assert alone == pytest.approx(together, rel=2e-3, abs=2e-4)
    assert one[0]["loss"] != pytest.approx(one[-2]["loss"], rel=0.02)  # it did learn
    for file in (tmp_path / "1").glob("*/model.safetensors"):
        first, second = load_file(file), load_file(tmp_path / "2" / file.parent.name / file.name)
        assert first.keys() == second.keys()
        # A softmax does not feel its bias: the gradient is nothing but rounding, which Adam makes large.
        for name in first.keys() - {"scores.bias"}:
            assert torch.allclose(first[name], second[name], atol=2e-4), name


LONG = replace(SETTINGS["schedule"], epochs=8)


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("undisturbed") / "model"
    train_in_processes(2, **training(inputs, model, RECIPES["pooled"], schedule=LONG))
    return model


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        (kill_one, "one of 2 training processes ended without a word"),
        (tell_all_to_end, "told to end by SIGTERM .* and the training goes on from there"),
    ],
)
def test_processes_that_are_ended_end_the_job_and_the_next_goes_on(inputs, undisturbed, tmp_path, capfd, ends, says):
    settings = training(inputs, tmp_path / "ended", RECIPES["pooled"], schedule=LONG)
    watcher = threading.Thread(target=at_second_checkpoint, args=(tmp_path / ".ended.checkpoint", ends), daemon=True)
    watcher.start()
    with pytest.raises(EarmarkError, match=says):
        train_in_processes(2, **settings)
    watcher.join(10)
    assert not (tmp_path / "ended").exists()
    capfd.readouterr()
    train_in_processes(2, **settings)
    assert "goes on from" in capfd.readouterr().err
    assert checksums(tmp_path / "ended") == checksums(undisturbed)
    assert not list(tmp_path.glob(".*"))


def test_what_is_wrong_is_said_once_whichever_process_found_it(inputs, tmp_path):
    settings = training(inputs, tmp_path / "model", RECIPES["pooled"], splits=inputs / "no such folder")
    with pytest.raises(EarmarkError, match=r"train\.parquet: there is no such file"):
        train_in_processes(2, **settings)
    assert not list(tmp_path.iterdir())
