"""What the trainer does besides training: keep the best epoch, and leave a trail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.retrieval.dev_evaluator import MRR, RECALL

_TIMINGS = ("_runtime", "_per_second")


class BestEpoch(TrainerCallback):
    """Keeps the trained weights of the best epoch (dev Recall@10, then MRR) and stops after `patience` without better.

    In memory: the trained part is small, and the frozen encoder need not be written once an epoch.
    """

    def __init__(self, model: nn.Module, patience: int):
        self.model, self.patience = model, patience
        self.best: tuple[float, float] | None = None
        self.epoch = 0.0
        self._waited = 0
        self._weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        assert metrics is not None
        score = (metrics[f"eval_{RECALL}"], metrics[f"eval_{MRR}"])
        if self.best is not None and score <= self.best:
            self._waited += 1
            control.should_training_stop = control.should_training_stop or self._waited >= self.patience
            return
        self.best, self.epoch, self._waited = score, state.epoch or 0.0, 0
        self._weights = {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def restore(self) -> None:
        """Put the best epoch's weights back into the model."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in self._weights.items():
                parameters[name].copy_(weight)


class MetricsLog(TrainerCallback):
    """Appends each of the trainer's logged dictionaries to train_metrics.jsonl: losses by step, and dev evaluations.

    How long things took is left out: the same run on the same data writes the same file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {name: value for name, value in (logs or {}).items() if not name.endswith(_TIMINGS)}
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
