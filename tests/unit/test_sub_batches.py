"""GradCache: a batch that goes through the network in parts trains what the whole batch would."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen2_audio import make_qwen2_audio
from tiny_run import RECIPES, make_inputs, training

from earmark.errors import ConfigError
from earmark.retrieval import sub_batches
from earmark.retrieval.augmentation import UNCHANGED
from earmark.retrieval.chunk_frames import cached_frames
from earmark.retrieval.dev_evaluator import DevEvaluator, DevLoss
from earmark.retrieval.encoders import load_frozen_encoder
from earmark.retrieval.pooled_loss import Margin
from earmark.retrieval.recipes import Material, Plan, PooledRecipe, Qwen2AudioRecipe
from earmark.retrieval.split_rows import read_split, read_surfaces
from earmark.retrieval.train import train_retriever

CHUNKS, SIZE = 7, 3  # the last part is not full
NEGATIVES = {"rome": ["oslo", "bonn"], "oslo": ["rome"], "kyoto": ["quito", "lima"], "quito": ["kyoto"]}
MARGINS: dict[str, Any] = {
    "no_term": Margin(0.15, 0.5), "hard_negative": Margin(0.1, 0.2), "hard_negatives": NEGATIVES, "max_negatives": 2,
}  # fmt: skip


def recipe(towers: str, dropout: float, **changes: Any) -> PooledRecipe:
    """With all its losses on."""
    pooled = RECIPES["pooled"]
    assert isinstance(pooled, PooledRecipe)
    if towers == "spelling":
        head, tower = {**pooled.head, "dropout": dropout}, {**pooled.tower, "dropout": dropout}
        return replace(pooled, head=head, tower=tower, **MARGINS)
    training: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": dropout, "unfreeze_layers": 0, **changes}
    fields = {**vars(pooled), "head": {"prompt": "Audio 1: ", **training}, "tower": {"prompt": "Term:\n"}}
    return Qwen2AudioRecipe(**{**fields, **MARGINS})


class Step:
    """One training step of a recipe on made-up frames."""

    def __init__(self, folder: Path, towers: str, dropout: float, **changes: Any):
        self.stack = ExitStack()
        rows = read_split(folder / "splits/train.parquet")
        frames = self.stack.enter_context(cached_frames([folder / "features.parquet"], {row.chunk_id for row in rows}))
        surfaces = read_surfaces(folder / "glossary.json", folder / "alt2main.json")
        torch.manual_seed(0)
        source = str(folder / ("encoder" if towers == "spelling" else "qwen2_audio"))
        encoder = load_frozen_encoder(source, 0)
        material = Material(rows, frames, surfaces, UNCHANGED, seed=0, source=source)
        self.plan: Plan = recipe(towers, dropout, **changes)(encoder, material)
        with torch.no_grad():
            for name, parameter in self.plan.loss.named_parameters():
                if "lora_B" in name:  # zero at first, and then lora_A has no gradient
                    parameter.normal_(std=0.1)
        batch = self.plan.batches([{"chunk": number} for number in range(CHUNKS)])
        self.labels = batch.pop("label")
        self.features = list(batch.values())

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def loss(self, size: int | None, seed: int = 5) -> torch.Tensor:
        self.plan.model.sub_batch_size = size
        self.plan.loss.train()
        torch.manual_seed(seed)
        parts = self.plan.loss([dict(part) for part in self.features], self.labels)
        assert parts.keys() == {"term_loss", "text_loss", "no_term_loss", "hard_negative_loss"}
        return torch.stack(list(parts.values())).sum()

    def gradients(self, size: int | None, seed: int = 5) -> tuple[float, dict[str, torch.Tensor]]:
        self.plan.loss.zero_grad()
        loss = self.loss(size, seed)
        torch.manual_seed(0)  # the second run of a part must not depend on what was drawn since the first
        loss.backward()
        trained = {name: weight for name, weight in self.plan.loss.named_parameters() if weight.requires_grad}
        assert all(weight.grad is not None for weight in trained.values())
        return loss.item(), {name: weight.grad.clone() for name, weight in trained.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_inputs(tmp_path_factory.mktemp("run"))
    make_qwen2_audio(path / "qwen2_audio", tower_dim=16)  # as wide as the frames
    return path


@pytest.mark.parametrize(
    ("towers", "changes"),
    [("spelling", {}), ("qwen2_audio", {}), ("qwen2_audio", {"gradient_checkpointing": True, "unfreeze_layers": 1})],
)
def test_the_gradients_are_those_of_the_undivided_batch(folder, towers, changes):
    with Step(folder, towers, dropout=0.0, **changes) as step:
        loss, gradients = step.gradients(None)
        divided_loss, divided = step.gradients(SIZE)
    assert divided_loss == pytest.approx(loss, abs=1e-6)
    assert gradients.keys() == divided.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, divided[name], atol=1e-5, rtol=1e-5), name
    assert sum(gradient.abs().max() > 1e-3 for gradient in gradients.values()) > len(gradients) / 2


@pytest.mark.parametrize("towers", ["spelling", "qwen2_audio"])
def test_a_part_drops_out_the_second_time_what_it_dropped_the_first_time(folder, towers, monkeypatch):
    with Step(folder, towers, dropout=0.3) as step:
        loss, gradients = step.gradients(SIZE)
        other_loss, _ = step.gradients(SIZE, seed=6)
        monkeypatch.setattr(sub_batches, "checkpoint", lambda embed, part, use_reentrant: embed(part))
        kept_loss, kept = step.gradients(SIZE)  # each part run once, its activations kept
    assert kept_loss == loss != pytest.approx(other_loss, abs=1e-4)
    for name, gradient in kept.items():
        assert torch.allclose(gradient, gradients[name], atol=1e-6), name


def test_of_a_divided_batch_nothing_is_kept_for_the_backward_pass_but_vectors(folder):
    def kept_bytes(size: int | None) -> int:
        kept: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step.loss(size)
        return sum(kept)

    with Step(folder, "qwen2_audio", dropout=0.1) as step:
        assert kept_bytes(SIZE) < kept_bytes(None) / 20


@pytest.mark.parametrize("towers", ["spelling", "qwen2_audio"])
def test_dev_is_evaluated_with_no_more_in_memory_than_training_has(folder, towers):
    rows = read_split(folder / "splits/dev.parquet")
    surfaces = read_surfaces(folder / "glossary.json", folder / "alt2main.json")
    with (
        Step(folder, towers, dropout=0.1) as step,
        cached_frames([folder / "features.parquet"], {row.chunk_id for row in rows}) as frames,
    ):
        model, seen = step.plan.model.eval(), []
        for route in model[0].sub_modules.values():
            route[-1].register_forward_hook(lambda _, inputs, made: seen.append(len(made["sentence_embedding"])))
        step.plan.batches.frames = frames
        figures = {}
        for size in (None, SIZE):
            model.sub_batch_size = size
            loss = DevLoss(step.plan, rows, batch_size=len(rows))
            figures[size] = DevEvaluator(rows, frames, surfaces, 10, len(rows), loss)(model)
            assert (max(seen) > SIZE) == (size is None), seen
            seen.clear()
    assert figures[SIZE].keys() == {"dev_recall@10", "dev_mrr", "dev_loss"}
    assert figures[SIZE] == pytest.approx(figures[None], abs=1e-5)


def test_an_alignment_retriever_refuses_it(folder, tmp_path):
    settings = training(folder, tmp_path / "model", RECIPES["alignment"])
    settings["schedule"] = replace(settings["schedule"], sub_batch_size=2)
    with pytest.raises(ConfigError, match="sub_batch_size is for pooled retrievers"):
        train_retriever(**settings)
    assert not list(tmp_path.iterdir())
