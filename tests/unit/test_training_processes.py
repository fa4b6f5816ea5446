"""Training in two processes is training in one: the same losses, the same model, and one that may be killed."""

from __future__ import annotations

import json
import threading
import time
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
    return replace(recipe, head=head, tower=tower, **margins, hard_negatives=NEGATIVES, max_negatives=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def kill_one(rank: int, checkpoints: Path) -> None:
    """Kill that one of this process's trainings when the second checkpoint comes: the first is whole then."""
    while len(list(checkpoints.glob("*/*/trainer_state.json"))) < 2:
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if process.environ().get("RANK") == str(rank):
            process.kill()


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


def test_a_process_that_is_killed_ends_the_job_and_the_next_goes_on(inputs, tmp_path, capfd):
    schedule = replace(SETTINGS["schedule"], epochs=8)
    train_in_processes(2, **training(inputs, tmp_path / "undisturbed", RECIPES["pooled"], schedule=schedule))
    settings = training(inputs, tmp_path / "killed", RECIPES["pooled"], schedule=schedule)
    killer = threading.Thread(target=kill_one, args=(1, tmp_path / ".killed.checkpoint"), daemon=True)
    killer.start()
    with pytest.raises(EarmarkError, match="one of 2 training processes ended without a word"):
        train_in_processes(2, **settings)
    killer.join(10)
    assert not (tmp_path / "killed").exists()
    capfd.readouterr()
    train_in_processes(2, **settings)
    assert "goes on from" in capfd.readouterr().err
    assert checksums(tmp_path / "killed") == checksums(tmp_path / "undisturbed")
    assert not list(tmp_path.glob(".*"))


def test_what_is_wrong_is_said_once_whichever_process_found_it(inputs, tmp_path):
    settings = training(inputs, tmp_path / "model", RECIPES["pooled"], splits=inputs / "no such folder")
    with pytest.raises(EarmarkError, match=r"train\.parquet: there is no such file"):
        train_in_processes(2, **settings)
    assert not list(tmp_path.iterdir())
