"""Transformers' Trainer with checkpoints of what trains, a checked step after resuming, and guards around each step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.artifacts import write_json
from earmark.checkpoint_times import CheckpointTimes
from earmark.files import read_json
from earmark.mid_epoch import MidEpochTrainer, TimedCheckpoints
from earmark.speech_llm.batches import Collator, Samples
from earmark.speech_llm.checkpoints import CHECK, check_loss
from earmark.speech_llm.labels import IGNORED
from earmark.speech_llm.manual_loss import manual_loss
from earmark.speech_llm.model import SpeechLanguageModel
from earmark.speech_llm.nan_monitor import NanMonitor
from earmark.speech_llm.settings import StabilitySettings
from earmark.speech_llm.stability import ClipGradients, EarlyLearningRate, FrozenProjectorStart, GradientNormWatch

log = logging.getLogger(__name__)

_CHECKED_SAMPLES = 2


class LogEpochs(TrainerCallback):
    """Ends each epoch with a line of losses."""

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = True


class SpeechTrainer(MidEpochTrainer):
    """Trains what requires gradients in `model`; `args.max_grad_norm` must be 0, as clipping is a guard's.

    A checkpoint holds the trained weights, what Trainer needs to go on, and the loss of the first samples with these
    weights. Resuming computes that loss again before the first step: CheckpointChanged if it is another.

    A batch whose loss is not finite counts as 0 in the logged loss; `skipped_steps` in the same line tells of it.

    Several processes fill up their last batch of an epoch with samples from its beginning, which then count twice:
    where that matters, conversations must divide by processes times batch size. The evaluation's loss is not touched
    by it.
    """

    def __init__(
        self,
        model: SpeechLanguageModel,
        args: TrainingArguments,
        *,
        samples: Samples,
        valid: Samples | None,
        collator: Collator,
        stability: StabilitySettings,
        folder: Path,
        resume_tolerance: float,
        times: CheckpointTimes,
    ):
        self.times = times
        self.monitor = NanMonitor(folder, on_nan=stability.on_nan, max_skips=stability.max_nan_skips)
        self.guards, self.norms = _guards(stability)
        self.speech_model = model
        super().__init__(
            model=model,
            args=args,
            train_dataset=samples,
            eval_dataset=valid,
            data_collator=collator,
            compute_loss_func=manual_loss if stability.manual_loss else None,
            callbacks=[LogEpochs(), self.monitor, *self.guards, TimedCheckpoints(times)],
        )
        self.stability, self.resume_tolerance = stability, resume_tolerance
        self._checked = [samples[index] for index in range(min(_CHECKED_SAMPLES, len(samples)))]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        valid_labels = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self.monitor.observe(loss, outputs["logits"], valid_labels)
            if self.stability.debug_loss:
                log.info("step %d: loss %.6f, %d labels", self.state.global_step, loss.item(), valid_labels.item())
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # the last batch of the step
            self.monitor.check_gradients(self.speech_model, self.state.global_step)
        # Trainer sums losses up and never forgets a NaN.
        return loss.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.monitor.skipped and "loss" in logs:
            logs["skipped_steps"] = self.monitor.skipped
        super().log(logs, *args, **kwargs)

    def _get_learning_rate(self) -> float:
        """The optimiser's, which guards may have lowered for this step; the scheduler does not know of it."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss over all labels of the validation data, whatever batches and processes divide it."""
        samples: Any = self.eval_dataset
        mine = range(self.args.process_index, len(samples), self.args.world_size)
        loader = DataLoader(
            Subset(samples, mine),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # sum of the loss, labels
        training = self.speech_model.training
        self.speech_model.eval()
        with torch.no_grad():
            for batch in loader:
                inputs = self._prepare_inputs(batch)
                loss = self.speech_model(**inputs, num_items_in_batch=1)["loss"]
                labels = (inputs["labels"][:, 1:] != IGNORED).sum()
                totals += torch.stack([loss.to(totals), labels.to(totals)])
        self.speech_model.train(training)
        loss_sum, labels_sum = self.accelerator.reduce(totals, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": loss_sum / labels_sum}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def checked_loss(self) -> float:
        """The mean loss on the first samples, without dropout."""
        training = self.speech_model.training
        self.speech_model.eval()
        with torch.no_grad():
            batch = self._prepare_inputs(self.data_collator(self._checked))  # type: ignore[arg-type]
            loss = self.speech_model(**batch)["loss"].item()
        self.speech_model.train(training)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        if not self.args.should_save:  # all processes are asked
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.speech_model.save_weights(folder)
        remembered: dict[str, Any] = {"skipped": self.monitor.skipped, "skipped_on_end": self.monitor.skipped_on_end}
        if self.norms is not None:
            remembered |= {"average": self.norms.average, "spikes": self.norms.spikes}
        write_json(folder / CHECK, {"loss": self.checked_loss(), "remembered": remembered})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        self.speech_model.load_weights(checkpoint)
        recorded = read_json(checkpoint / CHECK)
        remembered = recorded["remembered"]
        self.monitor.skipped, self.monitor.skipped_on_end = remembered["skipped"], remembered["skipped_on_end"]
        if self.norms is not None:
            self.norms.average, self.norms.spikes = remembered["average"], remembered["spikes"]
        check_loss(checkpoint, recorded["loss"], self.checked_loss(), self.resume_tolerance)


def _guards(stability: StabilitySettings) -> tuple[list[TrainerCallback], GradientNormWatch | None]:
    """The callbacks that the settings ask for, in the order in which they must act; and the watch among them."""
    guards: list[TrainerCallback] = []
    norms = None
    if stability.freeze_projector_steps:
        guards.append(FrozenProjectorStart(stability.freeze_projector_steps))
    if stability.grad_norm_ema_decay:
        norms = GradientNormWatch(
            stability.grad_norm_ema_decay, stability.grad_norm_spike, react=stability.grad_norm_lr_reaction,
            begin_anew=stability.freeze_projector_steps,
        )  # fmt: skip
        guards.append(norms)
    if stability.max_grad_norm or stability.lora_grad_clip:
        guards.append(ClipGradients(stability.max_grad_norm, stability.lora_grad_clip))
    if stability.early_lr_steps:
        guards.append(EarlyLearningRate(stability.early_lr_factor, stability.early_lr_steps))
    return guards, norms
