"""What the trainer does besides training: keep the best epoch, and begin each epoch where it was left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.retrieval.checkpoints import trained_weights
from earmark.retrieval.dev_evaluator import LOSS, MRR, RECALL
from earmark.retrieval.drawn_batches import DrawnBatches
from earmark.retrieval.processes import Processes

_PRINTED_STEPS = 50


class BestEpoch(TrainerCallback):
    """Keeps the trained weights of the best epoch and stops after `patience` epochs without a better one.

    Better is a higher dev Recall@10, then MRR, then a lower dev loss: with a few hundred chunks and terms that are
    heard well, many epochs rank all of them right. The weights are kept in memory, and beside each checkpoint: the
    trained part is small, and the frozen encoder need not be written once an epoch.
    """

    def __init__(self, model: nn.Module, patience: int):
        self.model, self.patience = model, patience
        self.best: tuple[float, float, float] | None = None  # Recall@10, MRR, -loss (-inf where there is none)
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
        score = (metrics[f"eval_{RECALL}"], metrics[f"eval_{MRR}"], -metrics.get(f"eval_{LOSS}", math.inf))
        better = self.best is None or score > self.best
        if better or score == self.best:  # of epochs that dev cannot tell apart the later has learned more
            self.best, self.epoch = score, state.epoch or 0.0
            self._weights = {name: weight.clone() for name, weight in trained_weights(self.model).items()}
        self._waited = 0 if better else self._waited + 1
        if self._waited >= self.patience:
            control.should_training_stop = True
            control.should_save = False  # nobody would go on from here

    def save(self, path: Path) -> None:
        """Write the best epoch so far: its weights, its score and how long there was none better."""
        kept = {"best": self.best, "epoch": self.epoch, "waited": self._waited}
        save_file(self._weights, path, metadata={"best_epoch": json.dumps(kept)})

    def load(self, path: Path) -> None:
        """Take over what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            kept = json.loads(file.metadata()["best_epoch"])
        self.best = tuple(kept["best"]) if kept["best"] else None  # none before the end of the first
        self.epoch, self._waited = kept["epoch"], kept["waited"]
        self._weights = load_file(path)

    def restore(self) -> None:
        """Put the best epoch's weights back into the model."""
        parameters = trained_weights(self.model)
        for name, weight in self._weights.items():
            parameters[name].copy_(weight)


class Epochs(TrainerCallback):
    """Lets nothing but weights and the trainer's own state pass from epoch to epoch; ends each with a line of losses.

    So a training that resumes sees the same batches as one that never stopped.
    """

    def __init__(self, batches: DrawnBatches):
        self.batches = batches

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        assert train_dataloader is not None
        self.batches.start_epoch(*divmod(state.global_step, len(train_dataloader)))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = True


class LossWeights(TrainerCallback):
    """Keeps what the loss itself learns (a threshold) the same in all processes, which otherwise only the model is."""

    def __init__(self, loss: nn.Module, processes: Processes):
        self.processes = processes
        self.learned = [weight for name, weight in loss.named_parameters() if not name.startswith("model.")]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for parameter in self.learned:
            self.processes.averaged(parameter)


class LogLines(PrinterCallback):
    """Prints dev figures and every fiftieth step: the job's log is read by people, train_metrics.jsonl holds all."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or state.global_step % _PRINTED_STEPS == 0:
            super().on_log(args, state, control, logs, **kwargs)
