"""Training a retriever on cached frames."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from earmark.artifacts import atomic_folder, write_json, write_jsonl
from earmark.checkpoint_times import CheckpointTimes, job_end
from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.files import read_json
from earmark.mid_epoch import MidEpochTrainer, TimedCheckpoints, TrainingTold
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.callbacks import BestEpoch, Epochs, LogLines, LossWeights
from earmark.retrieval.checkpoints import (
    BATCHES,
    BEST_EPOCH,
    STATE,
    WEIGHTS,
    checkpoint_folder,
    checkpoints_beside,
    last_checkpoint,
    load_weights,
    save_weights,
    training_key,
)
from earmark.retrieval.chunk_frames import cached_frames, rows_with_frames
from earmark.retrieval.dev_evaluator import LOSS, DevEvaluator, DevLoss
from earmark.retrieval.drawn_batches import DrawnBatches
from earmark.retrieval.encoders import load_frozen_encoder
from earmark.retrieval.processes import Processes
from earmark.retrieval.recipes import Material, Plan, Recipe
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces

log = logging.getLogger(__name__)

_TIMINGS = ("_runtime", "_per_second")
_FAST_FOR_PRETRAINED = 5e-4  # far above what LoRA is trained with; the default, for small towers, is 0.002


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int
    patience: int  # epochs without a better dev score
    batch_size: int  # chunks of a step, of all processes together
    learning_rate: float
    head_lr_factor: float  # of the head on the audio encoder (`Plan.heads`), beside all else that trains
    decay: str  # cosine | plateau: lower whenever the dev loss has not fallen for `plateau_patience` epochs
    warmup_ratio: float  # of all steps; cosine only
    plateau_factor: float
    plateau_patience: int  # epochs
    weight_decay: float
    sub_batch_size: int | None = None  # chunks, or texts, that are in memory at once; None: all (see `sub_batches`)


class RetrieverTrainer(MidEpochTrainer, SentenceTransformerTrainer):
    """Takes the batches of a recipe, whose parts but the label are inputs of the model already.

    A checkpoint holds what is trained, of the model and of the loss, and the best epoch so far; not the frozen encoder.
    Each of `processes` is given every batch whole (see `processes`).
    """

    def __init__(
        self,
        plan: Plan,
        best: BestEpoch,
        processes: Processes,
        times: CheckpointTimes,
        callbacks: list[TrainerCallback],
        **settings: Any,
    ):
        self.batches, self.times = DrawnBatches(plan.batches), times
        super().__init__(
            model=plan.model,
            train_dataset=Dataset.from_dict({"chunk": list(range(len(plan.batches.rows)))}),
            data_collator=self.batches,  # type: ignore[arg-type]  # any callable will do
            loss=plan.loss,
            callbacks=[
                best,
                Epochs(self.batches),
                LossWeights(plan.loss, processes),
                TimedCheckpoints(times),
                *callbacks,
            ],
            **settings,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(LogLines)
        self.plan, self.best, self.processes = plan, best, processes

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: it would quote the training columns, which here are indices."""

    def get_train_dataloader(self) -> DataLoader:
        if self.processes.count == 1:
            return super().get_train_dataloader()
        # As the accelerator would for one process: it would deal whole batches out.
        self._train_dataloader = prepare_data_loader(
            self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train"),
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=self.accelerator.use_seedable_sampler,
            data_seed=self.accelerator.dataloader_config.data_seed,
        )
        return self._train_dataloader

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # A learned temperature's logarithm is no weight: towards zero it would be drawn towards a temperature of one.
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("temperature.log")]

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        return [part for name, part in inputs.items() if name != "label"], inputs["label"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        if not self.processes.first:  # all are asked
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.plan.loss, folder / WEIGHTS)
        self.best.save(folder / BEST_EPOCH)
        assert self._train_dataloader is not None
        done = self.state.global_step % len(self._train_dataloader)
        write_json(folder / BATCHES, self.batches.state_before(done) if done else None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.plan.loss, Path(resume_from_checkpoint, WEIGHTS))
        self.best.load(Path(resume_from_checkpoint, BEST_EPOCH))
        self.batches.resumed = read_json(Path(resume_from_checkpoint, BATCHES))


def train_retriever(
    features: list[Path],
    splits: Path,
    glossary: Path,
    alt2main: Path,
    output: Path,
    *,
    encoder: str,
    layer: int,
    recipe: Recipe,
    schedule: Schedule,
    augmentation: FrameAugmentation,
    seed: int,
    threads: int,
    log_steps: int = 1,
    tensorboard: Path | None = None,
    checkpoint_minutes: float = 15.0,
) -> None:
    """Train on `splits`/train.parquet, choose the epoch on `splits`/dev.parquet, write the model folder `output`.

    `features` are the shards that `encode_chunks` wrote with the same `encoder`, `layer` and `seed`; the encoder itself
    is not run here, but saved with the model. `recipe` is one of `recipes`. Beside the model:
    train_metrics.jsonl (each part of the loss every `log_steps` steps, as the mean since the line before, and dev
    scores by epoch) and audit.json (parameters and dtypes by module); with `tensorboard` the same figures also go to
    that folder while training runs. The same seed and threads give the same weights, also where a run was killed in
    between: the next one goes on from its last checkpoint (see `checkpoints`), of which there is one every
    `checkpoint_minutes`, one shortly before the end of a Slurm job, and one an epoch; with 0 the last kind alone. Where
    torchrun started several processes, each calls this; the first writes (see `processes`, and
    `launch.train_in_processes`, which starts them).

    EarmarkError if there is nothing to train or choose on, the frames do not fit the encoder, a loss is not finite, or
    a part trains that must not. The folder appears under its name only when whole.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    processes = Processes.joined()
    watchers = [_tensorboard(tensorboard)] if tensorboard is not None and processes.first else []
    surfaces = read_surfaces(glossary, alt2main)
    train, dev = splits / "train.parquet", splits / "dev.parquet"
    train_rows, dev_rows = read_split(train), read_split(dev)
    key = training_key(
        [encoder, layer, recipe, schedule, augmentation, seed, threads, log_steps, processes.count],
        [*features, train, dev, glossary, alt2main, *_model_files(encoder, *recipe.sources)],
    )
    with (
        _output_folders(output, key, processes) as (checkpoints, scratch),
        cached_frames(features, {row.chunk_id for row in (*train_rows, *dev_rows)}) as frames,
    ):
        train_rows, dev_rows = rows_with_frames(train_rows, frames, train), rows_with_frames(dev_rows, frames, dev)
        _check_rows(train_rows, dev_rows, train, dev)
        frozen = load_frozen_encoder(encoder, seed, layer)
        if frames.dim != frozen.frame_dim:
            raise InputError(
                f"{features[0].parent}: frames are {frames.dim} wide, {encoder} gives {frozen.frame_dim}; "
                "encode the chunks again"
            )
        torch.manual_seed(seed)
        material = Material(train_rows, frames, surfaces, augmentation, seed, encoder)
        plan = recipe(frozen, material)
        audit = audit_modules(plan.parts, plan.trained, plan.partly)
        if any(plan.partly.values()) and schedule.learning_rate > _FAST_FOR_PRETRAINED:
            log.warning(
                "train.schedule.learning_rate is %g, and a pretrained language model trains with it: 0.0001, with "
                "head_lr_factor: 10 for the two projections, is where to begin",
                schedule.learning_rate,
            )
        if schedule.sub_batch_size is not None and plan.model.term_units is not None:
            raise ConfigError(
                "train.schedule.sub_batch_size is for pooled retrievers (retrieval.interaction: pooled); set it to null"
            )
        plan.model.sub_batch_size = schedule.sub_batch_size
        dev_loss = DevLoss(plan, dev_rows, schedule.batch_size)
        if schedule.decay == "plateau" and not dev_loss:
            raise InputError(f"{dev}: no chunk to compute a dev loss on; set train.schedule.decay: cosine")
        evaluator = DevEvaluator(dev_rows, frames, surfaces, plan.candidates, schedule.batch_size, dev_loss)
        times = CheckpointTimes(checkpoint_minutes, job_end() if processes.first else None)
        history = _fit(plan, evaluator, schedule, checkpoints, seed, processes, log_steps, watchers, times)
        if scratch is not None:
            write_json(scratch / "audit.json", audit)
            write_jsonl(scratch / "train_metrics.jsonl", _metrics(history))
            plan.model.save(str(scratch), create_model_card=False)


def _model_files(*sources: str) -> list[Path]:
    """The files of the folders that encoder, language model or text model are loaded from; none of a hub id."""
    folders = [Path(source.removeprefix("random:")) for source in sources]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*")) if path.is_file()]


@contextmanager
def _output_folders(output: Path, key: str, processes: Processes) -> Iterator[tuple[Path, Path | None]]:
    """The folder for checkpoints, and the one that becomes `output`, which the first process alone is given."""
    if not processes.first:
        yield checkpoint_folder(output, key), None
        return
    with checkpoints_beside(output, key) as checkpoints, atomic_folder(output) as scratch:
        yield checkpoints, scratch


def _tensorboard(folder: Path) -> TrainerCallback:
    """Writes what is logged to `folder`. ConfigError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard is true, but the package tensorboard is not installed; "
            "pip install 'earmark[tensorboard]', or set it to false"
        ) from None
    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))


def _check_rows(train_rows: list[SplitRow], dev_rows: list[SplitRow], train: Path, dev: Path) -> None:
    if not any(row.has_term for row in train_rows):
        raise InputError(
            f"{train}: no chunk with a term to train on; give fewer speakers to splits.dev_speakers and "
            "splits.test_speakers, or fewer terms to splits.unseen_terms"
        )
    if not any(row.has_term and row.seen_term for row in dev_rows):
        raise InputError(
            f"{dev}: no chunk with a term that training has heard, to choose the best epoch on; give "
            "splits.dev_speakers a larger share, or name speakers there who say such terms"
        )


def _fit(
    plan: Plan,
    evaluator: DevEvaluator,
    schedule: Schedule,
    checkpoints: Path,
    seed: int,
    processes: Processes,
    log_steps: int,
    watchers: list[TrainerCallback],
    times: CheckpointTimes,
) -> list[dict[str, float]]:
    """Train the plan's model in place and leave it with the weights of its best epoch; return the trainer's log."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        learning_rate_mapping=_learning_rates(plan, schedule),
        weight_decay=schedule.weight_decay,
        **_decay(schedule),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the one before, for as long as the newest is half written
        logging_steps=log_steps,
        logging_first_step=True,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_drop_last=processes.count > 1,  # or it is set with a warning; undone below
        ddp_find_unused_parameters=False,
        use_cpu=processes.count > 1 and not torch.cuda.is_available(),  # else the processes would not be noticed
        seed=seed,
        data_seed=seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # where a process sees several, DataParallel would cut batches apart
    arguments.dataloader_drop_last = False  # all processes see the last batch, however small: see `processes`
    best = BestEpoch(plan.model, schedule.patience)
    trainer = RetrieverTrainer(plan, best, processes, times, watchers, args=arguments, evaluator=evaluator)
    if processes.count > 1:
        torch.manual_seed(seed + processes.rank)  # each drops out at random on its own share
    checkpoint = processes.of_first(lambda: last_checkpoint(checkpoints, processes.count))
    if checkpoint is not None:
        log.info(
            "a killed training of this configuration goes on from %s, after %.2f epochs",
            checkpoint,
            read_json(checkpoint / STATE)["epoch"],
        )
    try:
        with times.heeding_sigterm():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if best.best is None or not all(parameter.isfinite().all() for parameter in plan.model.parameters()):
            raise EarmarkError("training ended with weights that are not finite; lower the learning rate")
    except TrainingTold:
        raise
    except EarmarkError:
        if processes.first:
            shutil.rmtree(checkpoints)  # whoever went on from them would end here again
        raise
    best.restore()
    recall, mrr, negative_loss = best.best
    log.info("best epoch %.0f: dev Recall@10 %.3f, MRR %.3f, loss %.4f", best.epoch, recall, mrr, -negative_loss)
    return trainer.state.log_history


def _decay(schedule: Schedule) -> dict[str, Any]:
    """The trainer's arguments for how the learning rate falls."""
    if schedule.decay == "cosine":
        return {"lr_scheduler_type": "cosine", "warmup_steps": schedule.warmup_ratio}
    return {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"factor": schedule.plateau_factor, "patience": schedule.plateau_patience},
        "metric_for_best_model": LOSS,  # what the schedule looks at
        "greater_is_better": False,
    }


def _learning_rates(plan: Plan, schedule: Schedule) -> dict[str, float]:
    """The learning rates by pattern of the parameters' names, of those that do not have the common one."""
    if schedule.head_lr_factor == 1:
        return {}
    return {plan.heads: schedule.learning_rate * schedule.head_lr_factor}


def _metrics(history: list[dict[str, float]]) -> Iterator[dict[str, float]]:
    """The lines of train_metrics.jsonl: losses by step, and dev evaluations.

    How long things took is left out, and the trainer's closing summary, which covers this process alone: the same run
    on the same data writes the same file.
    """
    for entry in history:
        if "train_runtime" not in entry:
            # By name: entries that were read from a checkpoint are.
            figures = {name: value for name, value in sorted(entry.items()) if not name.endswith(_TIMINGS)}
            yield {"step": figures.pop("step"), "epoch": round(figures.pop("epoch"), 4), **figures}
