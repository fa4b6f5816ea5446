"""Callbacks that act on gradients and learning rate just before an optimiser step.

`Trainer`'s schedulers set the learning rate anew after each step, from the step's number alone, so a rate that is
lowered here is lowered for one step; `SpeechTrainer` logs the lowered one.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.errors import ConfigError
from earmark.speech_llm.audit import part_of

log = logging.getLogger(__name__)


class BeforeStep(TrainerCallback):
    """Does something to gradients or learning rate when all gradients of a step are there."""

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None and optimizer is not None
        self.act(model, optimizer, state.global_step)

    @abstractmethod
    def act(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """`step` counts from 0."""


class FrozenProjectorStart(BeforeStep):
    """Leaves the projector as it is for the first `steps`.

    By taking its gradients away, not `requires_grad`: the optimiser then keeps no moments and decays nothing, and
    several processes agree on the parameters that they share. ConfigError if the training has no more steps than that.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steps >= state.max_steps:
            raise ConfigError(
                f"freeze_projector_steps is {self.steps}, but the training has {state.max_steps} steps, so the "
                "projector would never train; lower it"
            )

    def act(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step < self.steps:
            for name, parameter in model.named_parameters():
                if part_of(name) == "projector":
                    parameter.grad = None


class EarlyLearningRate(BeforeStep):
    """Multiplies the learning rate of the first `steps` by `factor`."""

    def __init__(self, factor: float, steps: int):
        self.factor, self.steps = factor, steps

    def act(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step < self.steps:
            _scale_learning_rate(optimizer, self.factor)


class GradientNormWatch(BeforeStep):
    """Logs a gradient norm over `spike` times its moving average, and lowers that step's learning rate if asked to.

    The rate is lowered in proportion: twice over the limit, half the rate. A spike enters the average as the limit, so
    that one does not hide the next. The average begins anew at step `begin_anew`, where the projector's gradients come
    in.
    """

    def __init__(self, decay: float, spike: float, *, react: bool, begin_anew: int = 0):
        self.decay, self.spike, self.react, self.begin_anew = decay, spike, react, begin_anew
        self.average: float | None = None
        self.spikes = 0

    def act(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == self.begin_anew:
            self.average = None
        gradients = _gradients(model)
        if not gradients:  # a skipped step
            return
        norm = float(get_total_norm(gradients))
        limit = norm if self.average is None else self.spike * self.average
        if norm > limit:
            self.spikes += 1
            log.warning("step %d: gradient norm %.3g is over %g times its average", step, norm, self.spike)
            if self.react:
                _scale_learning_rate(optimizer, limit / norm)
        seen = min(norm, limit)
        self.average = seen if self.average is None else self.decay * self.average + (1 - self.decay) * seen


class ClipGradients(BeforeStep):
    """Clips gradients to `max_norm`; the adapters' by themselves to `lora_norm`. 0: not, or with all others.

    By themselves, so that a burst in the adapters does not silence the projector, and the reverse.
    """

    def __init__(self, max_norm: float, lora_norm: float):
        self.max_norm, self.lora_norm = max_norm, lora_norm

    def act(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        lora: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                (lora if self.lora_norm and part_of(name) == "lora" else others).append(parameter)
        for parameters, norm in ((lora, self.lora_norm), (others, self.max_norm)):
            if parameters and norm:
                clip_grad_norm_(parameters, norm)


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _scale_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= factor
