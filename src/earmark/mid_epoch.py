"""Checkpoints inside an epoch, for Transformers' Trainer, after which a training ends as if nothing had happened."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from earmark.checkpoint_times import CheckpointTimes
from earmark.errors import EarmarkError

log = logging.getLogger(__name__)

_NOT_YET, _WRITE, _WRITE_AND_END = range(3)


class TrainingTold(EarmarkError):
    """A training was told to end, and can go on from the checkpoint that it wrote."""


def state_files(stem: str, processes: int) -> list[str]:
    """The names of the files in which each of so many processes leaves its part of a checkpoint."""
    return [f"{stem}_{rank}.pth" for rank in range(processes)] if processes > 1 else [f"{stem}.pth"]


class MidEpochTrainer(Trainer):
    """A Trainer whose checkpoints also hold the losses since the last line of the log: lines do not depend on when a
    checkpoint is written.

    What Trainer knows of an epoch it resumes by itself: which batches were seen, and the random states before the next.
    """

    times: CheckpointTimes
    accum_loss_components: dict[str, dict[str, torch.Tensor]]  # Sentence Transformers' trainer alone has them

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        began = self.times.clock()
        super()._save_checkpoint(model, trial)
        self.times.written(began)
        log.info("step %d: a checkpoint was written in %.1f s", self.state.global_step, self.times.took_s)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        losses = {
            "sum": self._tr_loss,
            "last_line": self._globalstep_last_logged,
            "parts": getattr(self, "accum_loss_components", {}).get("train", {}),
        }
        torch.save(losses, self._losses_file(output_dir))
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()  # the first process writes the trainer's state next, which makes a checkpoint whole

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        losses = torch.load(self._losses_file(checkpoint), map_location="cpu", weights_only=True)
        self._tr_loss += losses["sum"].to(self.args.device)
        self._globalstep_last_logged = losses["last_line"]
        if losses["parts"]:
            parts = {name: value.to(self.args.device) for name, value in losses["parts"].items()}
            self.accum_loss_components["train"] = parts

    def _losses_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, state_files("losses", self.args.world_size)[self.args.process_index])


class TimedCheckpoints(TrainerCallback):
    """Has a checkpoint written when it is time, and ends a training that is told to end once it has one.

    The first process decides for all. After the last step of an epoch the checkpoint waits for the evaluation: Trainer
    would take the epoch for done, and never evaluate it. This holds for checkpoints by `save_steps` too.
    """

    def __init__(self, times: CheckpointTimes):
        self.times = times
        self._decides: Any = None  # the group of processes that hears the first one
        self._ends = self._waits = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:
            self._decides = distributed.new_group(backend="gloo")  # a word between CPUs: no GPU is waited for

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.step_begins()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        assert train_dataloader is not None
        steps = max(1, -(-len(train_dataloader) // args.gradient_accumulation_steps))
        following = state.global_step + 1
        decision = self._of_first(self._decision(following % steps == 0 or following >= state.max_steps))
        self._ends = decision == _WRITE_AND_END
        control.should_save |= decision != _NOT_YET
        if control.should_save and (state.global_step % steps == 0 or state.global_step >= state.max_steps):
            control.should_save, self._waits = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save |= self._waits
        self._waits = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._ends:
            raise TrainingTold(
                f"told to end by SIGTERM (a time limit, a preemption or scancel) after step {state.global_step} of "
                f"{state.max_steps}; run again, and the training goes on from there"
            )

    def _decision(self, before_evaluation: bool) -> int:
        if not self.times.due(before_evaluation):
            return _NOT_YET
        return _WRITE_AND_END if self.times.told_to_end else _WRITE

    def _of_first(self, decision: int) -> int:
        if self._decides is None:
            return decision
        word = torch.tensor([decision])
        distributed.broadcast(word, src=0, group=self._decides)
        return int(word)
