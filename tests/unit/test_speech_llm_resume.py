"""A speech model's training that is killed between two steps of an epoch goes on there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from speech_llm_bases import make_bases, metrics, noise_conversations, settings
from transformers import Trainer

from earmark.mid_epoch import TrainingTold
from earmark.speech_llm.settings import Settings
from earmark.speech_llm.train import finetune
from earmark.speech_llm.trainer import SpeechTrainer

EVERY_STEP = 1e-9  # minutes
STEPS = 4  # in an epoch, of two batches each
_training_step = SpeechTrainer.training_step


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_conversations(tmp_path_factory.mktemp("noise"), [f"a farm {number}" for number in range(8)])


def chosen(bases: tuple[str, str], noise: Path, output: Path, **changed: Any) -> Settings:
    """Dropout, two batches a step, lines of losses that begin and end elsewhere than epochs and checkpoints."""
    return settings(
        bases, noise, output, num_train_epochs=2.0, lora_dropout=0.2, learning_rate=1e-2, logging_steps=3,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, valid_json=str(noise),
        **{"save_steps": 0, **changed},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(bases: tuple[str, str], noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with checkpoints at the ends of epochs alone."""
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    finetune(chosen(bases, noise, output, checkpoint_minutes=0.0))
    return output


def ends_like(output: Path, undisturbed: Path) -> bool:
    expected, resumed = (load_file(folder / "trained.safetensors") for folder in (undisturbed, output))
    assert metrics(output) == metrics(undisturbed)
    return expected.keys() == resumed.keys() and all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("owner", "method", "at_call", "saved", "changed"),
    [
        (Trainer, "training_step", 2 * STEPS + 4, STEPS + 1, {"checkpoint_minutes": EVERY_STEP}),
        # After the last step of an epoch: it is evaluated before it counts as done.
        (SpeechTrainer, "evaluate", 1, STEPS - 1, {"checkpoint_minutes": EVERY_STEP}),
        (SpeechTrainer, "evaluate", 1, STEPS // 2, {"checkpoint_minutes": 0.0, "save_steps": STEPS // 2}),
    ],
)
def test_a_training_killed_inside_an_epoch_ends_like_an_undisturbed_one(
    owner: Any,
    method: str,
    at_call: int,
    saved: int,
    changed: dict[str, Any],
    bases: tuple[str, str],
    noise: Path,
    undisturbed: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "model"
    pid = os.fork()
    if not pid:
        calls, real = iter(range(1, 1000)), getattr(owner, method)

        def deadly(*arguments: Any, **named: Any) -> Any:
            if next(calls) == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(owner, method, deadly)
        finetune(chosen(bases, noise, output, **changed))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    with caplog.at_level("INFO"):
        finetune(chosen(bases, noise, output))  # at other times, it is the same training
    assert f"goes on from {next((output / 'checkpoints').iterdir())}/checkpoint-{saved}" in caplog.text
    assert ends_like(output, undisturbed)


def test_a_training_that_is_told_to_end_leaves_a_checkpoint_and_says_so(
    bases: tuple[str, str],
    noise: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "model"

    def told(trainer: SpeechTrainer, *arguments: Any) -> Any:
        if trainer.state.global_step == STEPS + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return _training_step(trainer, *arguments)

    monkeypatch.setattr(SpeechTrainer, "training_step", told)
    with pytest.raises(TrainingTold, match=f"after step {STEPS + 2} of {2 * STEPS}"):
        finetune(chosen(bases, noise, output))
    monkeypatch.undo()
    assert list(output.glob(f"checkpoints/*/checkpoint-{STEPS + 2}"))
    finetune(chosen(bases, noise, output))
    assert ends_like(output, undisturbed)
