"""Training a retriever on cached frames."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from earmark.artifacts import atomic_folder, write_json
from earmark.errors import EarmarkError, InputError
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.callbacks import BestEpoch, MetricsLog
from earmark.retrieval.chunk_frames import cached_frames, rows_with_frames
from earmark.retrieval.dev_evaluator import DevEvaluator
from earmark.retrieval.recipes import Material, Plan, Recipe
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces
from earmark.retrieval.whisper import load_encoder, resolve_layer

log = logging.getLogger(__name__)


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
    """Takes the batches of a recipe, whose parts but the label are inputs of the model already."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: it would quote the training columns, which here are indices."""

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        return [part for name, part in inputs.items() if name != "label"], inputs["label"]


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
    seed and threads give the same weights.

    EarmarkError if there is nothing to train or choose on, the frames do not fit the encoder, a loss is not finite, or
    a part trains that must not. The folder appears under its name only when whole.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    surfaces = read_surfaces(glossary, alt2main)
    train, dev = splits / "train.parquet", splits / "dev.parquet"
    train_rows, dev_rows = read_split(train), read_split(dev)
    with (
        atomic_folder(output) as scratch,
        cached_frames(features, {row.chunk_id for row in (*train_rows, *dev_rows)}) as frames,
    ):
        train_rows, dev_rows = rows_with_frames(train_rows, frames, train), rows_with_frames(dev_rows, frames, dev)
        _check_rows(train_rows, dev_rows, train, dev)
        whisper = load_encoder(encoder, seed)
        if frames.dim != whisper.config.d_model:
            raise InputError(
                f"{features[0].parent}: frames are {frames.dim} wide, {encoder} gives {whisper.config.d_model}; "
                "encode the chunks again"
            )
        torch.manual_seed(seed)
        material = Material(train_rows, frames, surfaces, augmentation, seed)
        plan = recipe(whisper, resolve_layer(layer, whisper.config.encoder_layers), material)
        write_json(scratch / "audit.json", audit_modules(plan.parts, trained=plan.trained))
        evaluator = DevEvaluator(dev_rows, frames, surfaces, plan.candidates, schedule.batch_size)
        _fit(plan, evaluator, schedule, scratch / "train_metrics.jsonl", seed)
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


def _fit(plan: Plan, evaluator: DevEvaluator, schedule: Schedule, metrics: Path, seed: int) -> None:
    """Train the plan's model in place and leave it with the weights of its best epoch."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(metrics.parent),  # nothing is saved there: save_strategy
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        warmup_steps=schedule.warmup_ratio,
        lr_scheduler_type="cosine",
        weight_decay=schedule.weight_decay,
        eval_strategy="epoch",
        save_strategy="no",
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
    trainer = RetrieverTrainer(
        model=plan.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"chunk": list(range(len(plan.batches.rows)))}),
        loss=plan.loss,
        evaluator=evaluator,
        data_collator=plan.batches,  # type: ignore[arg-type]  # any callable will do
        callbacks=[best, MetricsLog(metrics)],
    )
    trainer.train()
    best.restore()
    if best.best is None or not all(parameter.isfinite().all() for parameter in plan.model.parameters()):
        raise EarmarkError("training ended with weights that are not finite; lower the learning rate")
    log.info("best epoch %.0f: dev Recall@10 %.3f, MRR %.3f", best.epoch, *best.best)
