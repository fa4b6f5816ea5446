"""Training the retriever's head and text tower on cached frames."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from earmark.artifacts import write_json
from earmark.errors import EarmarkError, InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.callbacks import BestEpoch, MetricsLog
from earmark.retrieval.chunk_frames import cached_frames, rows_with_frames
from earmark.retrieval.dev_evaluator import DevEvaluator
from earmark.retrieval.model import TermRetriever, build_retriever
from earmark.retrieval.retriever_loss import RetrieverLoss
from earmark.retrieval.split_rows import read_split, read_surfaces
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.training_batches import TrainingBatches
from earmark.retrieval.whisper import load_encoder, resolve_layer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadSize:
    """The audio head: see `AudioHead`."""

    hidden_dim: int
    queries: int
    blocks: int
    kernel_size: int
    dropout: float


@dataclass(frozen=True)
class TowerSize:
    """The text tower: see `SpellingTower`."""

    buckets: int
    shortest_ngram: int
    longest_ngram: int
    hidden_dim: int
    dropout: float


@dataclass(frozen=True)
class Objective:
    """The loss and what it is fed: see `RetrieverLoss` and `TrainingBatches`."""

    term_weight: float
    word_weight: float
    temperature: float
    max_surfaces: int
    max_phrases: int
    longest_phrase: int


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
    """Takes the batches of `TrainingBatches`, whose parts are inputs of the model already."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: it would quote the training columns, which here are indices."""

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        return [inputs["audio"], inputs["surfaces"], inputs["phrases"]], inputs["label"]


def train_retriever(
    features: list[Path],
    splits: Path,
    glossary: Path,
    alt2main: Path,
    output: Path,
    *,
    encoder: str,
    layer: int,
    embedding_dim: int,
    head: HeadSize,
    tower: TowerSize,
    objective: Objective,
    schedule: Schedule,
    augmentation: FrameAugmentation,
    seed: int,
    threads: int,
) -> None:
    """Train on `splits`/train.parquet, choose the epoch on `splits`/dev.parquet, write the model folder `output`.

    `features` are the shards that `encode_chunks` wrote with the same `encoder`, `layer` and `seed`; the encoder itself
    is not run here, but saved with the model, which is then complete. Beside the model: train_metrics.jsonl (losses by
    step, dev scores by epoch) and audit.json (parameters and dtypes by module). The same seed and threads give the
    same weights.

    EarmarkError if there is nothing to train or choose on, the frames do not fit the encoder, a loss is not finite, or
    a part trains that must not. The folder appears under its name only when whole.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    surfaces = read_surfaces(glossary, alt2main)
    train, dev = splits / "train.parquet", splits / "dev.parquet"
    train_rows, dev_rows = read_split(train), read_split(dev)
    output.parent.mkdir(parents=True, exist_ok=True)
    for stale in output.parent.glob(f".{output.name}.*.tmp"):
        shutil.rmtree(stale)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    try:
        with cached_frames(features, {row.chunk_id for row in (*train_rows, *dev_rows)}) as frames:
            train_rows, dev_rows = rows_with_frames(train_rows, frames, train), rows_with_frames(dev_rows, frames, dev)
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
            whisper = load_encoder(encoder, seed)
            if frames.dim != whisper.config.d_model:
                raise InputError(
                    f"{features[0].parent}: frames are {frames.dim} wide, {encoder} gives {whisper.config.d_model}; "
                    "encode the chunks again"
                )
            torch.manual_seed(seed)
            audio_head = AudioHead(frames.dim, embedding_dim=embedding_dim, **vars(head))
            text_tower = SpellingTower(embedding_dim=embedding_dim, **vars(tower))
            model = build_retriever(
                whisper, resolve_layer(layer, whisper.config.encoder_layers), audio_head, text_tower
            )
            parts = {"encoder": whisper, "audio_head": audio_head, "text_tower": text_tower}
            write_json(scratch / "model" / "audit.json", audit_modules(parts, trained={"audio_head", "text_tower"}))
            batches = TrainingBatches(
                train_rows,
                frames,
                surfaces,
                text_tower,
                augmentation,
                max_surfaces=objective.max_surfaces,
                max_phrases=objective.max_phrases,
                longest_phrase=objective.longest_phrase,
                seed=seed,
            )
            evaluator = DevEvaluator(dev_rows, frames, surfaces, schedule.batch_size)
            _fit(model, batches, evaluator, objective, schedule, scratch, seed)
            model.save(str(scratch / "model"), create_model_card=False)
        if output.exists():
            shutil.rmtree(output)
        (scratch / "model").rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fit(
    model: TermRetriever,
    batches: TrainingBatches,
    evaluator: DevEvaluator,
    objective: Objective,
    schedule: Schedule,
    scratch: Path,
    seed: int,
) -> None:
    """Train `model` in place and leave it with the weights of its best epoch."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "trainer"),
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
    loss = RetrieverLoss(model, objective.term_weight, objective.word_weight, objective.temperature)
    best = BestEpoch(model, schedule.patience)
    trainer = RetrieverTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"chunk": list(range(len(batches.rows)))}),
        loss=loss,
        evaluator=evaluator,
        data_collator=batches,  # type: ignore[arg-type]  # any callable will do
        callbacks=[best, MetricsLog(scratch / "model" / "train_metrics.jsonl")],
    )
    trainer.train()
    best.restore()
    if best.best is None or not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise EarmarkError("training ended with weights that are not finite; lower the learning rate")
    log.info("best epoch %.0f: dev Recall@10 %.3f, MRR %.3f", best.epoch, *best.best)
