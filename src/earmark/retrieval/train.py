"""Training a retriever on cached frames."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import nn

from earmark.artifacts import atomic_folder, write_json, write_jsonl
from earmark.errors import EarmarkError, InputError
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.callbacks import BestEpoch, WholeEpochs
from earmark.retrieval.checkpoints import (
    BEST_EPOCH,
    WEIGHTS,
    checkpoints_beside,
    last_checkpoint,
    load_weights,
    save_weights,
    training_key,
)
from earmark.retrieval.chunk_frames import cached_frames, rows_with_frames
from earmark.retrieval.dev_evaluator import DevEvaluator
from earmark.retrieval.encoders import load_frozen_encoder
from earmark.retrieval.recipes import Material, Plan, Recipe
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces

log = logging.getLogger(__name__)

_TIMINGS = ("_runtime", "_per_second")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int
    patience: int  # epochs without a better dev score
    batch_size: int  # chunks
    learning_rate: float
    warmup_ratio: float
    weight_decay: float


class RetrieverTrainer(SentenceTransformerTrainer):
    """Takes the batches of a recipe, whose parts but the label are inputs of the model already.

    A checkpoint holds what is trained, of the model and of the loss, and the best epoch so far; not the frozen encoder.
    """

    def __init__(self, plan: Plan, best: BestEpoch, **settings: Any):
        super().__init__(
            model=plan.model,
            train_dataset=Dataset.from_dict({"chunk": list(range(len(plan.batches.rows)))}),
            data_collator=plan.batches,  # type: ignore[arg-type]  # any callable will do
            loss=plan.loss,
            callbacks=[best, WholeEpochs(plan.batches)],
            **settings,
        )
        self.plan, self.best = plan, best

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: it would quote the training columns, which here are indices."""

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        return [part for name, part in inputs.items() if name != "label"], inputs["label"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.plan.loss, folder / WEIGHTS)
        self.best.save(folder / BEST_EPOCH)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.plan.loss, Path(resume_from_checkpoint, WEIGHTS))
        self.best.load(Path(resume_from_checkpoint, BEST_EPOCH))


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
) -> None:
    """Train on `splits`/train.parquet, choose the epoch on `splits`/dev.parquet, write the model folder `output`.

    `features` are the shards that `encode_chunks` wrote with the same `encoder`, `layer` and `seed`; the encoder itself
    is not run here, but saved with the model, which is then complete. `recipe` is one of `recipes`. Beside the model:
    train_metrics.jsonl (losses by step, dev scores by epoch) and audit.json (parameters and dtypes by module). The same
    seed and threads give the same weights, also where a run was killed in between: the next one goes on after its last
    whole epoch (see `checkpoints`).

    EarmarkError if there is nothing to train or choose on, the frames do not fit the encoder, a loss is not finite, or
    a part trains that must not. The folder appears under its name only when whole.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    surfaces = read_surfaces(glossary, alt2main)
    train, dev = splits / "train.parquet", splits / "dev.parquet"
    train_rows, dev_rows = read_split(train), read_split(dev)
    key = training_key(
        [encoder, layer, recipe, schedule, augmentation, seed, threads], [*features, train, dev, glossary, alt2main]
    )
    with (
        checkpoints_beside(output, key) as checkpoints,
        atomic_folder(output) as scratch,
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
        material = Material(train_rows, frames, surfaces, augmentation, seed)
        plan = recipe(frozen, material)
        write_json(scratch / "audit.json", audit_modules(plan.parts, trained=plan.trained))
        evaluator = DevEvaluator(dev_rows, frames, surfaces, plan.candidates, schedule.batch_size)
        history = _fit(plan, evaluator, schedule, checkpoints, seed)
        write_jsonl(scratch / "train_metrics.jsonl", _metrics(history))
        plan.model.save(str(scratch), create_model_card=False)


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
    plan: Plan, evaluator: DevEvaluator, schedule: Schedule, checkpoints: Path, seed: int
) -> list[dict[str, float]]:
    """Train the plan's model in place and leave it with the weights of its best epoch; return the trainer's log."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        warmup_steps=schedule.warmup_ratio,
        lr_scheduler_type="cosine",
        weight_decay=schedule.weight_decay,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,  # the one before, for as long as the newest is half written
        logging_steps=10,
        logging_first_step=True,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        seed=seed,
        data_seed=seed,
    )
    best = BestEpoch(plan.model, schedule.patience)
    trainer = RetrieverTrainer(plan, best, args=arguments, evaluator=evaluator)
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint is not None:
        log.info("a killed training of this configuration goes on from %s", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if best.best is None or not all(parameter.isfinite().all() for parameter in plan.model.parameters()):
            raise EarmarkError("training ended with weights that are not finite; lower the learning rate")
    except EarmarkError:
        shutil.rmtree(checkpoints)  # whoever went on from them would end here again
        raise
    best.restore()
    log.info("best epoch %.0f: dev Recall@10 %.3f, MRR %.3f", best.epoch, *best.best)
    return trainer.state.log_history


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
