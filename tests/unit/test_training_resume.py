"""A training killed by SIGKILL goes on where it was, and ends with the model of one that nobody disturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_run import RECIPES, SETTINGS, STEPS, checksums, make_inputs, training
from tiny_text_model import make_tiny_text_model
from transformers import Trainer, TrainerState

from earmark.errors import EarmarkError
from earmark.logs import job_log
from earmark.retrieval import checkpoints
from earmark.retrieval.checkpoints import checkpoints_beside, last_checkpoint
from earmark.retrieval.dev_evaluator import DevEvaluator
from earmark.retrieval.launch import train_in_processes
from earmark.retrieval.model import TermRetriever
from earmark.retrieval.train import train_retriever


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_the_middle_of_the_file(state: TrainerState, path: str) -> None:
    Path(path).write_text('{"epoch": 2.0, "log_history": [')
    _die()


_training_step = Trainer.training_step


def _told_to_end(*arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    return _training_step(*arguments)


# Where the process dies: the function during whose call of that number it happens.
Moment = tuple[Any, str, int, Callable[..., None]]
MOMENTS: dict[str, Moment] = {
    "in the first epoch": (Trainer, "training_step", 4, _die),
    "in the middle of the third epoch": (Trainer, "training_step", 2 * STEPS + 3, _die),
    "between the weights and the optimiser": (Trainer, "_save_optimizer_and_scheduler", 3, _die),
    "while the state is written": (TrainerState, "save_to_json", 3, _die_in_the_middle_of_the_file),
    "after a checkpoint is whole": (Trainer, "_maybe_log_save_evaluate", 3 * STEPS + 4, _die),
    "when all epochs are over": (TermRetriever, "save", 1, _die),
    "in the second step": (Trainer, "training_step", 2, _die),
    "in the fourth step of the second epoch": (Trainer, "training_step", STEPS + 4, _die),
    "in the first step of the third epoch": (Trainer, "training_step", 2 * STEPS + 1, _die),
    "in the evaluation of the third epoch": (DevEvaluator, "__call__", 3, _die),
    "while the state of the eighth step is written": (TrainerState, "save_to_json", 8, _die_in_the_middle_of_the_file),
    "told to end in the fourth step of the second epoch": (Trainer, "training_step", STEPS + 4, _told_to_end),
}
EVERY_STEP = 1e-9  # minutes


def _train(run: Path, interaction: str, moment: str | None, changes: dict[str, Any]) -> None:
    """The child process."""
    tempfile.tempdir = str(run)  # who is killed clears nothing away
    if moment is not None:
        owner, name, number, death = MOMENTS[moment]
        original, calls = getattr(owner, name), iter(range(1, 1000))
        setattr(owner, name, lambda *a, **k: death(*a, **k) if next(calls) == number else original(*a, **k))
    with job_log(run / "train.log"):
        recipe = changes.pop("recipe", None) or RECIPES[interaction]
        train_retriever(**training(run, run / "models" / interaction, recipe, **changes))


class Run:
    """A tiny run's folder, in which a training is started in processes of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def train(self, interaction: str, moment: str | None = None, *, status: int | None = None, **changes: Any) -> str:
        """Train until the end, or until the process dies at `moment` (with that exit status); return the log."""
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["earmark.retrieval.train"])
        process = processes.Process(target=_train, args=(self.folder, interaction, moment, changes))
        process.start()
        process.join(120)
        log = (self.folder / "train.log").read_text()
        expected = status if status is not None else 0 if moment is None else -signal.SIGKILL
        assert process.exitcode == expected, log[-3000:]
        return log

    def result(self, interaction: str) -> dict[str, str]:
        """A checksum of every file of the trained model."""
        return checksums(self.folder / "models" / interaction)

    @property
    def models(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "models").iterdir())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def run(inputs: Path, tmp_path: Path) -> Run:
    shutil.copytree(inputs, tmp_path / "run")  # with the files' times, which a checkpoint goes by
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The model's files by interaction."""
    results = {}
    for interaction in RECIPES:
        run = Run(tmp_path_factory.mktemp("undisturbed") / "run")
        shutil.copytree(inputs, run.folder)
        assert trained_epochs(run.train(interaction)) == [1, 2, 3, 4]
        assert run.models == [interaction]
        results[interaction] = run.result(interaction)
        assert {"train_metrics.jsonl", "audit.json", "modules.json"} < results[interaction].keys()
    return results


def trained_epochs(log: str) -> list[int]:
    """The epochs whose ends are in a log, by their dev scores."""
    return [int(epoch) for epoch in re.findall(r"'eval_dev_mrr': .*'epoch': '(\d+)'", log)]


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("in the first epoch", [1, 2, 3, 4]),
        ("in the middle of the third epoch", [3, 4]),
        ("between the weights and the optimiser", [3, 4]),
        ("while the state is written", [3, 4]),
        ("after a checkpoint is whole", [4]),
        ("when all epochs are over", []),
    ],
)
def test_a_killed_training_ends_like_an_undisturbed_one(run, undisturbed, moment, left):
    run.train("alignment", moment)
    assert "alignment" not in run.models
    assert trained_epochs(run.train("alignment")) == left
    assert run.result("alignment") == undisturbed["alignment"]
    assert run.models == ["alignment"]


@pytest.fixture(scope="module")
def without_checkpoints_inside(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The model's files by interaction; lines of losses do not fall on the ends of epochs, nor on most checkpoints."""
    results = {}
    for interaction in RECIPES:
        run = Run(tmp_path_factory.mktemp("whole_epochs") / "run")
        shutil.copytree(inputs, run.folder)
        run.train(interaction, log_steps=4, checkpoint_minutes=0)
        results[interaction] = run.result(interaction)
    return results


def went_on_from(log: str) -> int:
    """The step of the checkpoint that a training went on from."""
    (step,) = re.findall(r"goes on from \S+/checkpoint-(\d+), after", log)
    return int(step)


@pytest.mark.parametrize(
    ("interaction", "moment", "step", "left"),
    [
        ("alignment", "in the second step", 1, [1, 2, 3, 4]),
        ("alignment", "in the fourth step of the second epoch", STEPS + 3, [2, 3, 4]),
        ("pooled", "in the fourth step of the second epoch", STEPS + 3, [2, 3, 4]),
        ("alignment", "in the first step of the third epoch", 2 * STEPS, [3, 4]),
        ("alignment", "in the evaluation of the third epoch", 3 * STEPS - 1, [3, 4]),
        ("pooled", "while the state of the eighth step is written", STEPS + 1, [2, 3, 4]),
    ],
)
def test_a_training_killed_inside_an_epoch_goes_on_inside_it(
    run, without_checkpoints_inside, interaction, moment, step, left
):
    run.train(interaction, moment, log_steps=4, checkpoint_minutes=EVERY_STEP)
    log = run.train(interaction, log_steps=4)  # at other times, it is the same training
    assert went_on_from(log) == step
    assert trained_epochs(log) == left
    assert run.result(interaction) == without_checkpoints_inside[interaction]
    assert run.models == [interaction]


# Loaded by every Python that finds it: a process dies as it makes, or finds, the folder of a checkpoint of that step.
_DEADLY = """
import os, signal
mkdir = os.mkdir
def deadly(path, *arguments, **named):
    if os.fspath(path).endswith("/checkpoint-" + os.environ["DIES_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return mkdir(path, *arguments, **named)
if "DIES_AT" in os.environ:
    os.mkdir = deadly
"""


def test_two_processes_go_on_inside_an_epoch_alike(inputs, tmp_path, monkeypatch, capfd):
    arguments = {"checkpoint_minutes": EVERY_STEP, "log_steps": 4}
    whole = training(inputs, tmp_path / "undisturbed", RECIPES["pooled"], **arguments | {"checkpoint_minutes": 0})
    train_in_processes(2, **whole)
    (tmp_path / "sitecustomize.py").write_text(_DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    killed = training(inputs, tmp_path / "killed", RECIPES["pooled"], **arguments)
    with monkeypatch.context() as dying, pytest.raises(EarmarkError, match="one of 2 training processes ended without"):
        dying.setenv("DIES_AT", str(STEPS + 4))
        train_in_processes(2, **killed)
    capfd.readouterr()
    train_in_processes(2, **killed)
    assert went_on_from(capfd.readouterr().err) == STEPS + 3
    assert checksums(tmp_path / "killed") == checksums(tmp_path / "undisturbed")


def test_a_learning_rate_that_falls_with_the_dev_loss_goes_on_inside_an_epoch(run):
    plateau = {"schedule": replace(SETTINGS["schedule"], decay="plateau", learning_rate=0.1)}
    run.train("pooled", checkpoint_minutes=0, **plateau)
    whole = run.result("pooled")
    lines = (run.folder / "models/pooled/train_metrics.jsonl").read_text().splitlines()
    rates = {line["learning_rate"] for line in map(json.loads, lines) if "learning_rate" in line}
    assert len(rates) > 1  # it fell before the kill, and a restart knows so
    shutil.rmtree(run.folder / "models")
    run.train("pooled", "in the middle of the third epoch", checkpoint_minutes=EVERY_STEP, **plateau)
    assert went_on_from(run.train("pooled", **plateau)) == 2 * STEPS + 2
    assert run.result("pooled") == whole


def test_a_training_that_is_told_to_end_leaves_a_checkpoint_and_says_so(run, without_checkpoints_inside):
    log = run.train("alignment", "told to end in the fourth step of the second epoch", status=1, log_steps=4)
    assert f"told to end by SIGTERM (a time limit, a preemption or scancel) after step {STEPS + 4} of" in log[-300:]
    log = run.train("alignment", log_steps=4)
    assert went_on_from(log) == STEPS + 4
    assert run.result("alignment") == without_checkpoints_inside["alignment"]


def test_a_training_may_be_killed_again_and_again(run, undisturbed):
    for moment in ("after a checkpoint is whole", "in the first epoch", "in the first epoch"):
        run.train("pooled", moment)
    assert trained_epochs(run.train("pooled")) == [4]
    assert run.result("pooled") == undisturbed["pooled"]
    assert run.models == ["pooled"]


def test_a_training_with_a_text_model_and_a_learned_temperature_goes_on_inside_an_epoch(run):
    text_model = {"source": str(make_tiny_text_model(run.folder / "text_model")), "hidden_dim": 8, "dropout": 0.2}
    pooled: Any = RECIPES["pooled"]
    fused = {"recipe": replace(pooled, text_model=text_model, lexicon={}, learn_temperature=True)}
    run.train("pooled", checkpoint_minutes=0, **fused)
    whole = run.result("pooled")
    shutil.rmtree(run.folder / "models")
    run.train("pooled", "in the middle of the third epoch", checkpoint_minutes=EVERY_STEP, **fused)
    assert went_on_from(run.train("pooled", **fused)) == 2 * STEPS + 2
    assert run.result("pooled") == whole


def test_the_best_epoch_and_patience_outlive_the_process(run):
    # No step at all, so no dev figure changes: none is better than the first, so the third is the last, and is kept.
    still = {"schedule": replace(SETTINGS["schedule"], learning_rate=1e-45, epochs=9, patience=2)}
    assert trained_epochs(run.train("alignment", **still)) == [1, 2, 3]
    whole = run.result("alignment")
    shutil.rmtree(run.folder / "models")
    run.train("alignment", "in the middle of the third epoch", **still)
    log = run.train("alignment", **still)
    assert trained_epochs(log) == [3]
    assert "best epoch 3:" in log
    assert run.result("alignment") == whole


def test_checkpoints_hold_what_is_trained_and_not_the_encoder(run):
    run.train("alignment", "after a checkpoint is whole")
    (folder,) = (run.folder / "models/.alignment.checkpoint").iterdir()
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert [path.name for path in kept] == [f"checkpoint-{STEPS * epoch}" for epoch in (2, 3)]
    names = set(load_file(kept[-1] / checkpoints.WEIGHTS))
    assert "term_loss.no_term_score" in names  # the loss learns too
    assert len(names) > 1
    assert not any("encoder" in name for name in names)


@pytest.mark.parametrize("change", ["seed", "features", "encoder"])
def test_another_training_does_not_go_on_from_a_checkpoint(run, change):
    run.train("alignment", "in the middle of the third epoch")
    seed = 3
    if change == "seed":
        seed = 4
    else:
        changed = run.folder / {"features": "features.parquet", "encoder": "encoder/model.safetensors"}[change]
        changed.write_bytes(changed.read_bytes())  # encoded again, or another model in its place
    log = run.train("alignment", seed=seed)
    assert "checkpoints of another configuration" in log
    assert trained_epochs(log) == [1, 2, 3, 4]
    assert run.models == ["alignment"]


def test_a_checkpoint_that_is_being_removed_is_no_checkpoint(tmp_path):
    with checkpoints_beside(tmp_path / "models/retriever", "key") as folder:
        for step in (6, 12):
            (folder / f"checkpoint-{step}").mkdir()
            for name in (*checkpoints._FILES, "rng_state.pth", "losses.pth"):
                (folder / f"checkpoint-{step}" / name).write_text("{}")
        (folder / "checkpoint-12" / "optimizer.pt").unlink()
        assert last_checkpoint(folder) == folder / "checkpoint-6"
        assert [path.name for path in folder.iterdir()] == ["checkpoint-6"]


def test_a_training_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no features"), checkpoints_beside(tmp_path / "retriever", "key"):
        raise ValueError("no features")
    assert not list(tmp_path.iterdir())
