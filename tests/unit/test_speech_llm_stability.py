"""Each guard against what it guards from, on a model of two parts; the trainer that runs them is tested elsewhere."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.errors import ConfigError
from earmark.speech_llm.activation_clamp import clamp_first_q_proj
from earmark.speech_llm.nan_monitor import NanMonitor, TrainingDiverged
from earmark.speech_llm.stability import ClipGradients, EarlyLearningRate, FrozenProjectorStart, GradientNormWatch


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.Linear(4, 4, bias=False)


class Tiny(nn.Module):
    """A projector and an adapter, named as in the real model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Linear(4, 4)
        self.qwen3 = nn.ModuleDict({"q_proj": Adapter()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qwen3["q_proj"].lora_A(self.projector(x))


class Steps:
    """Optimiser steps in the order of Trainer's, with a scheduler that sets the rate by the step's number."""

    def __init__(self, *callbacks: TrainerCallback, lr: float = 0.1):
        self.model, self.callbacks = Tiny(), callbacks
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.state, self.rates = TrainerState(), []

    def step(self, scale: float = 1.0) -> None:
        (scale * self.model(torch.ones(2, 4)).square().sum()).backward()
        for callback in self.callbacks:
            if isinstance(callback, NanMonitor):
                callback.check_gradients(self.model, self.state.global_step)
        self._call("on_pre_optimizer_step")
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        self._call("on_step_end")

    def _call(self, event: str) -> None:
        arguments = TrainingArguments(use_cpu=True, report_to=[])
        for callback in self.callbacks:
            getattr(callback, event)(
                arguments, self.state, TrainerControl(), model=self.model, optimizer=self.optimizer
            )  # fmt: skip

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}


def norm(gradients: dict[str, torch.Tensor], part: str) -> float:
    return math.sqrt(sum(g.square().sum().item() for name, g in gradients.items() if part in name))


def test_the_projector_stays_as_it_is_for_so_many_steps_and_then_trains() -> None:
    steps = Steps(FrozenProjectorStart(2))
    begun = steps.weights()
    for _ in range(2):
        steps.step()
    for name, weight in steps.weights().items():
        assert torch.equal(weight, begun[name]) == name.startswith("projector")
    assert not any(p in steps.optimizer.state for p in steps.model.projector.parameters())
    steps.step()
    assert not torch.equal(steps.model.projector.weight, begun["projector.weight"])


def test_the_first_steps_are_taken_at_a_lower_rate() -> None:
    steps = Steps(EarlyLearningRate(0.25, 2))
    for _ in range(4):
        steps.step()
    assert steps.rates == pytest.approx([0.025, 0.025, 0.1, 0.1])


def test_adapters_are_clipped_by_themselves() -> None:
    loud = Steps()
    loud.step(1e3)
    assert norm(loud.gradients, "lora") > 100
    assert norm(loud.gradients, "projector") > 100
    steps = Steps(ClipGradients(2.0, 0.5))
    steps.step(1e3)
    assert norm(steps.gradients, "lora") == pytest.approx(0.5, rel=1e-4)
    assert norm(steps.gradients, "projector") == pytest.approx(2.0, rel=1e-4)
    together = Steps(ClipGradients(2.0, 0.0))
    together.step(1e3)
    assert norm(together.gradients, "") == pytest.approx(2.0, rel=1e-4)
    alone = Steps(ClipGradients(0.0, 0.5))
    alone.step(1e3)
    assert norm(alone.gradients, "lora") == pytest.approx(0.5, rel=1e-4)
    assert norm(alone.gradients, "projector") == pytest.approx(norm(loud.gradients, "projector"))


@pytest.mark.parametrize("react", [False, True])
def test_a_burst_of_gradient_is_logged_and_lowers_that_steps_rate_if_asked(
    react: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watch = GradientNormWatch(0.9, 3.0, react=react)
    steps = Steps(watch, lr=1e-6)  # the norm stays what it is
    for scale in (1, 1, 60, 60, 1):
        steps.step(scale)
    assert watch.spikes == 2
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 2", "step 3"]
    expected = [1e-6] * 5
    if react:  # 60 times the average of 1, where 3 is allowed; then of 0.9 + 0.1 * 3
        expected[2:4] = [1e-6 * 3 / 60, 1e-6 * 3 * 1.2 / 60]
    assert steps.rates == pytest.approx(expected, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_with_parameter_step_and_logits(tmp_path: Path) -> None:
    monitor = NanMonitor(tmp_path, on_nan="stop", max_skips=0)
    steps = Steps(monitor, ClipGradients(1.0, 0.0))
    steps.step()
    # Infinite in the adapter alone: all gradients would be NaN if they were clipped first.
    steps.model.qwen3["q_proj"].lora_A.weight.register_hook(lambda gradient: gradient * math.inf)
    before = steps.weights()
    monitor.observe(torch.tensor(2.5), torch.tensor([[-3.0, 80.0]]), torch.tensor(17))
    with pytest.raises(TrainingDiverged) as stopped:
        steps.step()
    assert "step 1: gradients of 1 of 3 parameters are not finite, first qwen3.q_proj.lora_A.weight" in str(
        stopped.value
    )
    assert "loss 2.5 over 17 labels with logits from -3 to 80" in str(stopped.value)
    told = json.loads((tmp_path / "nan_snapshot.json").read_text())
    assert told["step"] == 1
    assert told["parameters"] == ["qwen3.q_proj.lora_A.weight"]
    assert told["batches"] == [{"loss": 2.5, "logits_min": -3.0, "logits_max": 80.0, "valid_labels": 17}]
    kept = load_file(tmp_path / "nan_snapshot.safetensors")
    assert torch.equal(kept["projector.weight"], before["projector.weight"])
    assert kept["gradient.projector.weight"].isfinite().all()
    assert not kept["gradient.qwen3.q_proj.lora_A.weight"].isfinite().all()


def test_a_loss_that_is_not_finite_stops_though_its_gradients_are(tmp_path: Path) -> None:
    monitor = NanMonitor(tmp_path, on_nan="stop", max_skips=0)
    monitor.observe(torch.tensor(math.inf), torch.tensor([[-3.0, math.nan]]), torch.tensor(17))
    with pytest.raises(TrainingDiverged, match="step 0: the loss is not finite in 1 batches"):
        Steps(monitor).step()
    (batch,) = json.loads((tmp_path / "nan_snapshot.json").read_text(), parse_constant=pytest.fail)["batches"]
    assert (batch["loss"], batch["logits_max"], batch["valid_labels"]) == (None, None, 17)


def test_the_average_of_norms_begins_anew_where_the_projector_thaws() -> None:
    frozen = FrozenProjectorStart(2)
    steps = Steps(frozen, GradientNormWatch(0.99, 1.01, react=True, begin_anew=2), lr=1e-6)
    for _ in range(4):
        steps.step()
    assert steps.rates == pytest.approx([1e-6] * 4)
    with pytest.raises(ConfigError, match="freeze_projector_steps is 2, but the training has 2 steps"):
        frozen.on_train_begin(TrainingArguments(use_cpu=True), TrainerState(max_steps=2), TrainerControl())


def test_a_step_that_is_not_finite_is_skipped_and_counted_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = NanMonitor(tmp_path, on_nan="skip", max_skips=2)
    steps = Steps(monitor, ClipGradients(1.0, 0.0), GradientNormWatch(0.9, 3.0, react=True))
    steps.step()
    before = steps.weights()
    for _ in range(2):
        steps.step(math.nan)
    assert all(torch.equal(weight, before[name]) for name, weight in steps.weights().items())
    assert monitor.skipped == 2
    assert "the step is skipped (2 so far)" in caplog.text
    steps.step()
    assert not torch.equal(steps.model.projector.weight, before["projector.weight"])
    for _ in range(2):
        steps.step(math.nan)
    with pytest.raises(TrainingDiverged):  # the third on end
        steps.step(math.nan)
    assert json.loads((tmp_path / "nan_snapshot.json").read_text())["skipped"] == 4


def test_a_weight_that_the_optimiser_made_nan_stops_in_either_mode(tmp_path: Path) -> None:
    class Half(Steps):
        def __init__(self, *callbacks: TrainerCallback):
            super().__init__(*callbacks)
            self.model.qwen3["q_proj"].lora_A.weight.data.fill_(0.0)  # no gradient for the projector
            self.model.half()

        def step(self, scale: float = 1.0) -> None:
            self.model(torch.ones(2, 4, dtype=torch.float16)).float().sum().backward()
            for event in ("on_pre_optimizer_step", "on_step_end"):
                if event == "on_step_end":
                    self.optimizer.step()
                self._call(event)

    with pytest.raises(TrainingDiverged, match=r"made weights not finite: projector\.weight"):
        Half(NanMonitor(tmp_path, on_nan="skip", max_skips=9)).step()


def test_the_clamp_stops_values_that_would_overflow_half_precision() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(64, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q_proj(x)

    attention = Attention().half()
    attention.q_proj.weight.data.fill_(1.0)
    loud = torch.full((1, 64), 6e4, dtype=torch.float16)
    assert attention(loud).isinf().all()
    undo = clamp_first_q_proj(attention, 100.0)
    assert attention(loud).isfinite().all()
    undo.remove()
    assert attention(loud).isinf().all()


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Any:
    with caplog.at_level(logging.INFO):
        yield
