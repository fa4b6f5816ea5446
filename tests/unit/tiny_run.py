"""A run small enough to train in seconds: made-up frames, eight terms, both kinds of retriever."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import WhisperConfig, WhisperModel

from earmark.artifacts import FEATURES, SPLITS, write_json, write_table
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.recipes import AlignmentRecipe, Material, Plan, PooledRecipe, Recipe
from earmark.retrieval.train import Schedule

DIM = 16
TERMS = ["rome", "oslo", "lima", "paris", "bonn", "kyoto", "quito", "accra"]
STEPS = 6  # in an epoch
EPOCHS = 4

# Dropout, masks, a choice of surfaces and a learned threshold in the loss: all that a restart could get wrong.
RECIPES: dict[str, AlignmentRecipe | PooledRecipe] = {
    "alignment": AlignmentRecipe(
        units="letters", lexicon={}, head={"hidden_dim": 16, "blocks": 1, "kernel_size": 3, "dropout": 0.2},
        candidates=10, text_weight=1.0, term_weight=0.5, temperature=1.5, max_surfaces=6,
    ),
    "pooled": PooledRecipe(
        embedding_dim=16, head={"hidden_dim": 16, "queries": 2, "blocks": 1, "kernel_size": 3, "dropout": 0.2},
        tower={"buckets": 256, "shortest_ngram": 2, "longest_ngram": 3, "hidden_dim": 16, "dropout": 0.2},
        candidates=10, text_weight=0.3, term_weight=0.7, temperature=0.1, max_surfaces=6, max_phrases=8,
        longest_phrase=2,
    ),
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "layer": -1,
    "schedule": Schedule(
        EPOCHS, patience=4, batch_size=4, learning_rate=0.01, head_lr_factor=1.0, decay="cosine", warmup_ratio=0.1,
        plateau_factor=0.5, plateau_patience=0, weight_decay=0.01,
    ),
    "augmentation": FrameAugmentation(crop_frames=2, mask_spans=2, mask_frames=3, noise=0.1),
    "seed": 3,
    "threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class KilledOnce:
    """A recipe whose process number `rank` dies while it draws batch number `batch`, unless `flag` is there."""

    recipe: Recipe
    rank: int
    batch: int
    flag: Path

    @property
    def sources(self) -> tuple[str, ...]:
        return self.recipe.sources

    def __call__(self, encoder: FrozenEncoder, material: Material) -> Plan:
        plan = self.recipe(encoder, material)
        if not self.flag.exists() and os.environ.get("RANK", "0") == str(self.rank):
            collate, drawn = type(plan.batches).__call__, iter(range(self.batch))

            def deadly(batches: Any, batch: list[dict[str, Any]]) -> dict[str, Any]:
                if next(drawn, None) is None:
                    self.flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return collate(batches, batch)

            type(plan.batches).__call__ = deadly  # type: ignore[method-assign]
        return plan


def make_inputs(folder: Path) -> Path:
    """Encoder, glossary, splits and features, as the earlier stages would leave them."""
    torch.manual_seed(0)
    sizes = {"d_model": DIM, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    tokens = {"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    WhisperModel(
        WhisperConfig(**sizes, **tokens, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8)
    ).save_pretrained(folder / "encoder")
    write_json(folder / "glossary.json", {term: {"term": term, "aliases": []} for term in TERMS})
    write_json(folder / "alt2main.json", {})
    random = np.random.default_rng(0)
    voices = {term: random.standard_normal(DIM) for term in (*TERMS, None)}
    features = []
    for split, repeats in (("train", 3), ("dev", 1)):
        rows = [_row(f"{split}-{term}-{n}", term) for n in range(repeats) for term in [*TERMS[:7], None]]
        write_table(folder / "splits" / f"{split}.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
        for row in rows:
            frames = random.standard_normal((int(random.integers(24, 32)), DIM)) + voices[row["term"]]
            features.append(
                {"chunk_id": row["chunk_id"], "n_frames": len(frames), "frames": frames.astype("<f2").tobytes()}
            )
    write_table(folder / "features.parquet", pa.Table.from_pylist(features, schema=FEATURES))
    return folder


def _row(chunk_id: str, term: str | None) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id,
        "speaker_id": "ann",
        "term": term,
        "main_term": term,
        "has_term": term is not None,
        "other_terms": [],
        "seen_term": None if term is None else True,
        "text": f"we saw {term}" if term else "we saw nothing",
        "duration_s": 1.2,
    }


def training(folder: Path, output: Path, recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """The arguments of `train_retriever` for the run in `folder`."""
    return {
        "features": [folder / "features.parquet"],
        "splits": folder / "splits",
        "glossary": folder / "glossary.json",
        "alt2main": folder / "alt2main.json",
        "output": output,
        "encoder": str(folder / "encoder"),
        "recipe": recipe,
        **SETTINGS,
        **changes,
    }


def checksums(model: Path) -> dict[str, str]:
    """A checksum of every file of a trained model."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return {str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
