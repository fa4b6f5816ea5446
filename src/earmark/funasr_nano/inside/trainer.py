"""FunASR's trainer with guards: it stops where the original goes on with numbers that are not finite, or with nothing.

`guarded` puts it into FunASR's own training program, `funasr.bin.train_ds`, which runs unchanged.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from funasr.bin import train_ds
from funasr.datasets.dataloader_entry import DataloaderMapStyle
from funasr.register import tables
from funasr.train_utils.set_all_random_seed import set_all_random_seed
from funasr.train_utils.trainer_ds import Trainer

try:
    from funasr.utils import fbank as features
except ImportError:  # versions that compute features by torchaudio alone
    features = None

from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.funasr_nano.inside import guards

log = logging.getLogger(__name__)

METRICS = "train_metrics.jsonl"
AUDIT = "audit.json"
_Dataset: Any = tables.dataset_classes["FunASR"]  # by the table: its module gives another class the same name
UNFINISHED = ".writing"  # ends the name of a file that is not whole yet
MOST_SKIPPED = 5  # optimiser steps on end


class TrainingDiverged(EarmarkError):
    """A loss, gradient or weight is not finite."""


class GuardedTrainer(Trainer):
    """The trainer of FunASR's program, which makes the instance; what stands without a value is set by `guarded`.

    On a host without a GPU the device stays the CPU: the program sets it to the local rank, a GPU's number, always.
    """

    conf: Mapping[str, Any]
    seed: int
    names: set[str]  # of the model's tensors, for who looks at the saved files
    _skipped_on_end = 0
    _batches = 1  # of an epoch
    _resumed_at = 0  # batches of the epoch before those that this process trains

    @property
    def device(self) -> Any:
        return self._device if torch.cuda.is_available() else "cpu"

    @device.setter
    def device(self, device: Any) -> None:
        self._device = device

    def warp_optim_scheduler(self, model: torch.nn.Module, **kwargs: Any) -> Any:
        """Before there is an optimiser: what would train is held against the configuration, and written down."""
        bare = _bare(model)
        report = guards.audit(bare, guards.declared(bare, self.conf))
        if self.rank == 0:
            write_json(Path(self.output_dir, AUDIT), report)
            shares = (
                f"{name} {part['trainable']:,} of {part['parameters']:,}" for name, part in report["parts"].items()
            )
            log.info("parameters that train: %s", ", ".join(shares))
        self.names.update(bare.state_dict())
        if (self.conf.get("llm_conf") or {}).get("activation_checkpoint", False):
            # transformers has embeddings require gradients under checkpoints, for the sake of reentrant ones, and
            # FunASR writes the audio into the embeddings, which autograd forbids where they do.
            llm: Any = bare.llm
            llm.disable_input_require_grads()
        if bad := guards.not_finite(bare.state_dict().items()):
            raise TrainingDiverged(f"the model to start from holds NaN or infinity: {guards.named(bad)}; get it anew")
        return super().warp_optim_scheduler(model, **kwargs)

    def resume_checkpoint(self, **kwargs: Any) -> None:
        """Go on from model.pt, with the files beside it as they were when it was whole."""
        super().resume_checkpoint(**kwargs)
        if self.rank != 0:
            return
        folder = Path(self.output_dir)
        _keep_lines(folder / METRICS, self.batch_total)
        if self.batch_total:
            log.info("going on after epoch %d, batch %d", self.start_epoch, self.batch_total)
        best = folder / self.best_step_or_epoch if self.best_step_or_epoch else None
        if best is not None and best.is_file():  # a kill may have come between model.pt and model.pt.best
            shutil.copyfile(best, folder / f"model.pt.best{UNFINISHED}")
            (folder / f"model.pt.best{UNFINISHED}").replace(folder / "model.pt.best")
        ranked = getattr(self, f"val_{self.avg_keep_nbest_models_type}_step_or_epoch")
        for path in folder.glob("model.pt.ep*"):
            if path.name not in self.saved_ckpts and (path.name in ranked or not self.batch_total):
                path.unlink()  # pruned, or written by an epoch that runs again

    def train_epoch(self, model: torch.nn.Module = None, epoch: int = 0, **kwargs: Any) -> None:  # type: ignore[assignment]
        """An epoch draws from its own seed, so one after a kill draws what it would have drawn without.

        ConfigError if it has fewer batches than make an optimiser step: FunASR would train nothing, and end well.
        """
        sampler = kwargs["dataloader_train"].batch_sampler
        sampler.set_epoch(epoch)
        self._batches = self.step_in_epoch + sum(1 for _ in sampler)
        self._resumed_at = kwargs.get("start_step", 0)
        if self.accum_grad > self._batches:
            raise ConfigError(
                f"train_conf.accum_grad is {self.accum_grad}, but epoch {epoch + 1} has {self._batches} batches, so "
                "there would be no optimiser step; lower train_conf.accum_grad or dataset_conf.batch_size"
            )
        set_all_random_seed(self.seed + epoch)
        super().train_epoch(model=model, epoch=epoch, **kwargs)

    def forward_step(self, model: torch.nn.Module, batch: Any, loss_dict: dict[str, Any]) -> None:
        super().forward_step(model, batch, loss_dict=loss_dict)
        loss = loss_dict["loss"]
        if not bool(torch.isfinite(loss).all()):
            where = f"batch {self.batch_total}, epoch {loss_dict['epoch']}" if model.training else "validation"
            raise TrainingDiverged(
                f"{where}: the loss is {loss.item()}; lower optim_conf.lr, raise scheduler_conf.warmup_steps, or set "
                "llm_conf.llm_dtype to fp32"
            )

    def update_step(
        self, model: torch.nn.Module, optim: Any, scheduler: Any, scaler: Any, loss_dict: Any = None
    ) -> None:
        due = (loss_dict["batch_idx"] + 1) % self.accum_grad == 0
        if due and scaler is None:  # a scaler's gradients overflow now and then by design
            self._check_gradients(model)
        super().update_step(model, optim, scheduler, scaler, loss_dict=loss_dict)

    def _check_gradients(self, model: torch.nn.Module) -> None:
        """FunASR leaves out an update whose gradients are not finite, and without grad_clip does not even look."""
        gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        bad = guards.not_finite(gradients)
        if not bad:
            self._skipped_on_end = 0
            return
        self._skipped_on_end += 1
        what = f"batch {self.batch_total}: gradients of {len(bad)} parameters are not finite, first {guards.named(bad)}"
        if self.grad_clip <= 0 or self._skipped_on_end > MOST_SKIPPED:
            raise TrainingDiverged(
                f"{what} ({self._skipped_on_end} steps on end); lower optim_conf.lr, raise "
                "scheduler_conf.warmup_steps, or set llm_conf.llm_dtype to fp32"
            )
        log.warning("%s; the step is left out", what)

    def save_checkpoint(self, epoch: int, *args: Any, model: torch.nn.Module = None, **kwargs: Any) -> None:  # type: ignore[assignment]
        if bad := guards.not_finite(_bare(model).state_dict().items()):
            raise TrainingDiverged(
                f"after batch {self.batch_total} the model holds NaN or infinity in {len(bad)} tensors: "
                f"{guards.named(bad)}; nothing of it is saved. Lower optim_conf.lr, or set llm_conf.llm_dtype to fp32"
            )
        if kwargs.get("step") is not None:
            # FunASR counts it from where this process began, and a resumed one would train batches again.
            kwargs["step"] += self._resumed_at
        super().save_checkpoint(epoch, *args, model=model, **kwargs)

    def log(self, loss_dict: dict[str, Any], tag: str = "train", **kwargs: Any) -> None:
        super().log(loss_dict, tag=tag, **kwargs)
        if tag == "train" and self.rank == 0 and (loss_dict["batch_idx"] + 1) % self.log_interval == 0:
            line = {"loss": loss_dict["loss"].item(), "learning_rate": loss_dict["lr"]}
            if "acc" in loss_dict["stats"]:
                line["acc"] = loss_dict["stats"]["acc"].item()
            done = loss_dict["step_in_epoch"] / self._batches  # FunASR's own batch_num_epoch may be 1 whatever comes
            self._write_metrics(loss_dict["epoch"] + done, line)

    def validate_epoch(self, model: torch.nn.Module = None, epoch: int = 0, **kwargs: Any) -> None:  # type: ignore[assignment]
        super().validate_epoch(model=model, epoch=epoch, **kwargs)
        if not math.isfinite(self.val_loss_avg):
            raise TrainingDiverged(f"the dev loss after batch {self.batch_total} is {self.val_loss_avg}")
        if self.rank == 0:
            # Within an epoch it is given the number of whole ones before.
            done = epoch + (kwargs["step_in_epoch"] / self._batches if kwargs.get("step_in_epoch") else 0)
            self._write_metrics(done, {"eval_loss": self.val_loss_avg, "eval_acc": self.val_acc_avg})

    def _write_metrics(self, epoch: float, figures: Mapping[str, float]) -> None:
        finite = {name: round(value, 6) if math.isfinite(value) else None for name, value in figures.items()}
        if "learning_rate" in figures:
            finite["learning_rate"] = figures["learning_rate"]
        with Path(self.output_dir, METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.batch_total, "epoch": round(epoch, 4)} | finite) + "\n")


class GuardedDataloader(DataloaderMapStyle):
    """FunASR's, which with nothing to train on trains on nothing, saves a model and ends well."""

    _looked = False

    def build_iter(self, *args: Any, **kwargs: Any) -> Any:
        for split, data in (("train", self.dataset_tr), ("dev", self.dataset_val)):
            if data is not None and len(data) == 0:
                raise InputError(_nothing_left(split))
        loaders = super().build_iter(*args, **kwargs)
        # The sampler passes over what is longer than max_token_length. A resumed epoch may rightly have nothing left.
        if not self._looked and not kwargs.get("start_step"):
            for split, loader in zip(("train", "dev"), loaders, strict=True):
                if not any(len(batch) for batch in loader.batch_sampler):
                    raise InputError(_nothing_left(split))
        self._looked = True
        return loaders


class GuardedDataset(_Dataset):
    """FunASR's, which puts a random other line in the place of one whose audio it cannot read, and goes on."""

    def __getitem__(self, index: int) -> Any:
        output = super().__getitem__(index)
        wanted = self.index_ds.contents[index]
        if output is None:
            raise InputError(
                f"none of {self.retry} lines in a row could be used, the first of them {_shown(wanted)}; FunASR's "
                "warnings above say why"
            )
        if output["item"] is not wanted:
            log.warning(
                "%s: cannot be used, and another line took its place; see FunASR's warning above", _shown(wanted)
            )
        return output


def _shown(item: Mapping[str, Any]) -> str:
    return str(item.get("key") or " ".join(item["user"])[:300])


def _nothing_left(split: str) -> str:
    return (
        f"FunASR would train on nothing: its filters drop every line of {split}. See data_report.json for the reasons; "
        "dataset_conf.max_source_length, max_target_length and max_token_length set its limits"
    )


class _Resumed:
    """A sampler that leaves out those batches of an epoch that were trained before."""

    def __init__(self, sampler: Any, start_step: int):
        self.sampler, self.start_step = sampler, start_step

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.sampler, self.start_step, None)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


def _resuming(build: Callable[..., dict[str, Any]], dataset: Any, **kwargs: Any) -> dict[str, Any]:
    """What FunASR builds for a loader; of its samplers one alone heeds `start_step`."""
    built = build(dataset, **kwargs)
    if (start_step := kwargs.get("start_step", 0)) and not hasattr(built["batch_sampler"], "start_step"):
        built["batch_sampler"] = _Resumed(built["batch_sampler"], start_step)
    return built


@contextmanager
def guarded(conf: Mapping[str, Any], seed: int) -> Iterator[set[str]]:
    """Within, FunASR's training program uses the guarded trainer and loader, and saves files whole or not at all.

    Gives a set that the training fills with the names of the model's tensors.
    """
    names: set[str] = set()
    trainer, save, tables_print = train_ds.Trainer, torch.save, tables.print
    loader, dataset = tables.dataloader_classes["DataloaderMapStyle"], tables.dataset_classes["FunASR"]
    train_ds.Trainer = type("Trainer", (GuardedTrainer,), {"conf": conf, "seed": seed, "names": names})
    samplers = dict(tables.batch_sampler_classes)
    tables.batch_sampler_classes.update({name: partial(_resuming, build) for name, build in samplers.items()})
    tables.dataloader_classes["DataloaderMapStyle"] = GuardedDataloader
    tables.dataset_classes["FunASR"] = GuardedDataset
    tables.print = lambda *args: None  # hundreds of lines, of every class there is

    def save_whole(saved: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(file, str | os.PathLike):
            save(saved, file, *args, **kwargs)
            return
        unfinished = Path(f"{os.fspath(file)}{UNFINISHED}")
        save(saved, unfinished, *args, **kwargs)
        unfinished.replace(file)

    torch.save = save_whole  # type: ignore[assignment]
    fbank = getattr(features, "fbank", None)
    if fbank is not None and not getattr(features, "_HAS_TORCHAUDIO", False):
        features.fbank = partial(_seeded_fbank, fbank)
    try:
        yield names
    finally:
        tables.batch_sampler_classes.update(samplers)
        if fbank is not None:
            features.fbank = fbank
        train_ds.Trainer, torch.save, tables.print = trainer, save, tables_print
        tables.dataloader_classes["DataloaderMapStyle"], tables.dataset_classes["FunASR"] = loader, dataset


def _seeded_fbank(fbank: Callable[..., torch.Tensor], waveform: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Features with dither from torch's generator, as torchaudio's are: kaldi-native-fbank's own knows no seed."""
    dither = kwargs.pop("dither", 0.0)
    if dither:
        waveform = waveform + dither * torch.randn_like(waveform)
    return fbank(waveform, dither=0.0, **kwargs)


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """Without the wrapper of several processes."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _keep_lines(path: Path, last_step: int) -> None:
    """Of a metrics file, keep the lines up to a step: those after it come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                kept.append(line)
        except ValueError:
            continue  # half a line
    path.write_text("".join(kept), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    unfinished.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
