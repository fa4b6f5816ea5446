"""Finds the first number of a training that is not finite, and says where it was."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.artifacts import atomic_path, write_json
from earmark.errors import EarmarkError
from earmark.speech_llm.model import trained_weights

log = logging.getLogger(__name__)

SNAPSHOT = "nan_snapshot"
_NAMED = 5  # parameters in a message; the snapshot names all


class TrainingDiverged(EarmarkError):
    """A loss, gradient or weight is not finite."""


class NanMonitor(TrainerCallback):
    """Checks losses and gradients of each step before the optimiser sees them, and weights after it.

    `on_nan` stop: TrainingDiverged, after `nan_snapshot.json` (step, losses, range of the last logits, parameters) and
    `nan_snapshot.safetensors` (trained weights and gradients) were written to `folder`. `on_nan` skip: the step is left
    out and counted; after more than `max_skips` on end it stops all the same. Weights that are not finite always stop.
    All processes of a training decide alike.

    `observe` is called for each batch and `check_gradients` once all of a step are there: before clipping, which would
    spread one NaN over every gradient.
    """

    def __init__(self, folder: Path, *, on_nan: str, max_skips: int):
        self.folder, self.on_nan, self.max_skips = folder, on_nan, max_skips
        self.skipped = 0  # steps in all
        self.skipped_on_end = 0
        self._batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # loss, logits' range, labels

    def observe(self, loss: torch.Tensor, logits: torch.Tensor, valid_labels: torch.Tensor) -> None:
        """Note a batch. Nothing is read back from the device until something is wrong."""
        with torch.no_grad():
            self._batches.append((loss.detach().clone(), torch.stack(torch.aminmax(logits.detach())), valid_labels))

    def check_gradients(self, model: nn.Module, step: int) -> None:
        """Look at the losses and gradients of optimiser step `step`."""
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        bad = _not_finite(gradients)
        bad_losses = self._bad_losses()
        if not bad and not bad_losses:
            self._batches.clear()
            self.skipped_on_end = 0
            return
        if bad:
            what = f"gradients of {len(bad)} of {len(gradients)} parameters are not finite, first {_some(bad)}"
        else:
            what = f"the loss is not finite in {bad_losses} batches of all processes; the gradients are"
        if self.on_nan == "skip" and self.skipped_on_end < self.max_skips:
            self.skipped += 1
            self.skipped_on_end += 1
            log.warning("step %d: %s; the step is skipped (%d so far)", step, what, self.skipped)
            for parameter in model.parameters():
                parameter.grad = None  # the optimiser passes over parameters without one
            self._batches.clear()
            return
        self._stop(model, step, what, bad)

    def _bad_losses(self) -> int:
        """Batches of the step whose loss is not finite, in all processes.

        Gradients are summed over processes, so one that is ill spoils all of them; a loss spoils only its own.
        """
        if not self._batches:
            return 0
        count = (~torch.stack([loss for loss, *_ in self._batches]).isfinite()).sum()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
        return int(count)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        bad = _not_finite(trained_weights(model))
        if bad:
            self._stop(model, state.global_step, f"the optimiser made weights not finite: {_some(bad)}", bad)

    def _stop(self, model: nn.Module, step: int, what: str, bad: list[str]) -> None:
        batches = [
            {"loss": loss.item(), "logits_min": low, "logits_max": high, "valid_labels": int(count)}
            for loss, (low, high), count in ((loss, span.tolist(), n) for loss, span, n in self._batches)
        ]
        written = [{name: finite_or_none(value) for name, value in batch.items()} for batch in batches]
        path = self.folder / f"{SNAPSHOT}.json"
        write_json(path, {"step": step, "what": what, "parameters": bad, "batches": written, "skipped": self.skipped})
        tensors = {name: weight.contiguous() for name, weight in trained_weights(model).items()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                tensors[f"gradient.{name}"] = parameter.grad.detach().contiguous()
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            save_file(tensors, temporary)
        told = ", ".join(
            f"loss {batch['loss']:g} over {batch['valid_labels']} labels with logits from {batch['logits_min']:g} to "
            f"{batch['logits_max']:g}"
            for batch in batches[-1:]
        )
        raise TrainingDiverged(
            f"step {step}: {what}{'; ' + told if told else ''}. See {path}; lower learning_rate or max_grad_norm, or "
            "raise early_lr_steps"
        )


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: NaN and infinity become null."""
    return value if math.isfinite(value) else None


def _not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of those that hold NaN or infinity; the device is waited for once, not once a tensor."""
    if not tensors:
        return []
    device = next(iter(tensors.values())).device
    finite = torch.stack([tensor.isfinite().all().to(device) for tensor in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
