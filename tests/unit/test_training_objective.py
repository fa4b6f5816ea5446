"""Margin losses, hard negatives and the dev loss, on a run of eight terms."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import RECIPES, SETTINGS, make_inputs, training
from torch import nn
from transformers import TrainerControl, TrainerState

from earmark.artifacts import SPLITS, read_table, write_json, write_table
from earmark.errors import ConfigError, InputError
from earmark.pronunciations import EnglishPronouncer
from earmark.retrieval.augmentation import UNCHANGED
from earmark.retrieval.callbacks import BestEpoch
from earmark.retrieval.chunk_frames import cached_frames
from earmark.retrieval.dev_evaluator import LOSS, MRR, RECALL, DevLoss
from earmark.retrieval.encoders import load_frozen_encoder
from earmark.retrieval.hard_negative_loss import HardNegativeMarginLoss
from earmark.retrieval.hard_negatives import (
    HARD_NEGATIVES,
    mine_hard_negatives,
    nearest_by_sound,
    read_hard_negatives,
)
from earmark.retrieval.homophones import Homophones
from earmark.retrieval.no_term_loss import NoTermMarginLoss
from earmark.retrieval.pooled_loss import Margin
from earmark.retrieval.recipes import Material, Plan, PooledRecipe
from earmark.retrieval.split_rows import SplitRow, read_split
from earmark.retrieval.term_loss import IGNORED, NOT_SPOKEN, SPOKEN
from earmark.retrieval.train import train_retriever

NEGATIVES = {"rome": ["oslo", "bonn", "lima"], "oslo": ["rome"]}
SURFACES = {term: term for term in ("rome", "oslo", "lima", "paris", "bonn", "kyoto", "quito", "accra")}
POOLED = RECIPES["pooled"]
assert isinstance(POOLED, PooledRecipe)
ALL_LOSSES = replace(
    POOLED,
    no_term=Margin(0.15, 0.5),
    hard_negative=Margin(0.1, 0.2),
    hard_negatives=NEGATIVES,
    max_negatives=2,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def material(inputs) -> Any:
    rows = {name: read_split(inputs / f"splits/{name}.parquet") for name in ("train", "dev")}
    ids = {row.chunk_id for split in rows.values() for row in split}
    with cached_frames([inputs / "features.parquet"], ids) as frames:
        yield Material(rows["train"], frames, SURFACES, UNCHANGED, seed=0), rows["dev"]


def plan_of(material: Material, recipe: Any, inputs: Path) -> Plan:
    torch.manual_seed(0)
    plan = recipe(load_frozen_encoder(str(inputs / "encoder"), 0, -1), material)
    plan.model.eval()  # without dropout
    return plan


def test_a_no_term_chunk_costs_what_its_best_term_lacks_to_the_margin():
    loss = NoTermMarginLoss(margin=0.15)
    threshold = nn.Parameter(torch.tensor(0.3))
    scores = torch.tensor([[0.2, -0.5], [0.9, 0.1], [0.1, 0.0], [0.9, 0.1], [0.9, 0.9]], requires_grad=True)
    targets = torch.tensor(
        [[NOT_SPOKEN] * 2, [SPOKEN, NOT_SPOKEN], [NOT_SPOKEN] * 2, [IGNORED, NOT_SPOKEN], [IGNORED] * 2]
    )
    value = loss(scores, targets, threshold)
    # The second has a term, the third lies below, the fourth does but for what sounds like something in it.
    assert value.item() == pytest.approx((0.2 - (0.3 - 0.15)) / 4)
    value.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.25, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert threshold.grad is None  # it does not flee


def test_a_batch_in_which_every_chunk_has_a_term_costs_no_no_term_margin():
    value = NoTermMarginLoss(0.15)(torch.tensor([[0.9]], requires_grad=True), torch.tensor([[SPOKEN]]), torch.tensor(0))
    assert value.item() == 0
    value.backward()


def test_hard_negatives_cost_by_hand_and_only_those_of_the_chunk():
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    own = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.0, 1.0]])
    negatives = torch.tensor([[0.75, 0.0], [0.9, 0.0], [0.0, 0.95]])
    against = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    value = HardNegativeMarginLoss(0.1)(audio, own, negatives, against)
    assert value.item() == pytest.approx(((0.05 + 0.2) / 2 + 0.05) / 2)


@pytest.mark.parametrize("part", ["term_loss", "text_loss", "no_term_loss", "hard_negative_loss"])
def test_each_part_of_the_pooled_loss_alone_reaches_the_audio_head_and_the_text_tower(material, inputs, part):
    plan = plan_of(material[0], ALL_LOSSES, inputs)
    batch = plan.batches([{"chunk": number} for number in range(8)])
    labels = batch.pop("label")
    assert labels["against"].any(dim=1).tolist() == [True, True, *[False] * 6]
    plan.loss(list(batch.values()), labels)[part].backward()
    for name in ("audio_head", "text_tower"):
        gradients = [weight.grad for weight in plan.parts[name].parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), name
    router: Any = plan.model[0]
    assert plan.parts["text_tower"] is router.sub_modules["text"][0]


def test_the_gradient_of_a_hard_negative_reaches_its_own_spelling(material, inputs):
    """It is embedded in the step: a vector from the index would teach the text tower nothing about it."""
    plan = plan_of(material[0], replace(ALL_LOSSES, hard_negative=Margin(2.5, 0.2)), inputs)
    batch = plan.batches([{"chunk": 1}])  # oslo, against rome
    labels = batch.pop("label")
    plan.loss(list(batch.values()), labels)["hard_negative_loss"].backward()
    tower: Any = plan.parts["text_tower"]
    rows = [tower.preprocess([text])["input_ids"][0] for text in ("rome", "accra")]
    of_rome, of_accra = (tower.ngrams.weight.grad[ids].abs().sum() for ids in rows)
    assert of_rome > 0 == of_accra


def test_what_a_chunk_says_too_is_none_of_its_negatives(material, inputs):
    frames = material[0].frames
    ids = [row.chunk_id for row in material[0].rows[:4]]
    rows = [
        SplitRow(ids[0], "ann", "rome", "rome", ("bonn",), True, "rome and bonn", 1.0),
        SplitRow(ids[1], "ann", "oslo", "oslo", (), True, "oslo", 1.0),
        SplitRow(ids[2], "ann", "bonn", "bonn", (), True, "bonn", 1.0),
        SplitRow(ids[3], "ann", None, None, (), None, "nothing", 1.0),
    ]
    recipe = replace(ALL_LOSSES, max_negatives=10)
    plan = plan_of(Material(rows, frames, SURFACES, UNCHANGED, 0), recipe, inputs)
    batch = plan.batches([{"chunk": 0}])
    assert batch["label"]["against"].tolist() == [[True]]  # oslo; bonn is heard, and nobody in training says lima
    for silent in (2, 3):  # one without negatives, one without a term
        batch = plan.batches([{"chunk": silent}])
        assert "negatives" not in batch
        labels = batch.pop("label")
        assert plan.loss(list(batch.values()), labels)["hard_negative_loss"].item() == 0


def test_every_part_of_the_loss_is_a_figure_of_every_step(inputs, tmp_path):
    schedule = replace(SETTINGS["schedule"], epochs=1)
    train_retriever(**training(inputs, tmp_path / "model", ALL_LOSSES, schedule=schedule))
    lines = [json.loads(line) for line in (tmp_path / "model/train_metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    parts = ("term_loss", "text_loss", "no_term_loss", "hard_negative_loss")
    for line in steps:
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), abs=1e-3)
    assert any(line["hard_negative_loss"] > 0 for line in steps)


def glossary_of(folder: Path, terms: list[str], aliases: dict[str, str]) -> list[Path]:
    write_json(folder / "glossary.json", {term: {"term": term, "aliases": []} for term in terms})
    write_json(folder / "alt2main.json", aliases)
    return [folder / "glossary.json", folder / "alt2main.json"]


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("model") / "model"
    train_retriever(**training(inputs, output, POOLED, schedule=replace(SETTINGS["schedule"], epochs=1)))
    return output


def mine(model: Path, inputs: Path, glossary: list[Path], output: Path, **changes: Any) -> dict[str, list[str]]:
    settings = {
        "earlier": None, "number": 1, "k": 2, "pronunciation": True, "language": "en", "lexicon": {}, "index": "flat",
        "threads": 1,
    }  # fmt: skip
    mine_hard_negatives(model, inputs / "splits/train.parquet", *glossary, output, **(settings | changes))
    return read_hard_negatives(output)


def test_mined_are_others_that_training_hears_and_never_an_alias_or_a_homophone(trained, inputs, tmp_path):
    # Nobody says accra, nor jerome. "roam" and "rome" sound alike; "eternal city" is rome by another name.
    terms = [*SURFACES, "roam", "jerome"]
    train = read_table(inputs / "splits/train.parquet").to_pylist()
    train[0] |= {"other_terms": ["roam"]}
    write_table(tmp_path / "splits/train.parquet", pa.Table.from_pylist(train, schema=SPLITS))
    glossary = glossary_of(tmp_path, terms, {"eternal city": "rome"})
    found = mine(trained, tmp_path, glossary, tmp_path / "1.parquet", k=99)
    heard = {*SURFACES, "roam", "eternal city"} - {"accra"}
    assert set(found) == heard
    for surface, others in found.items():
        alike = {"rome", "roam", "eternal city"} if surface == "rome" else {surface}
        alike |= {"rome"} if surface in ("roam", "eternal city") else set()
        assert set(others) == heard - alike
    table = read_table(tmp_path / "1.parquet").to_pylist()
    assert {row["source"] for row in table} == {"index", "pronunciation"}


def test_each_source_gives_its_nearest_k_best_first(trained, inputs, tmp_path):
    mine(trained, inputs, glossary_of(tmp_path, list(SURFACES), {}), tmp_path / "1.parquet")
    rows = [row for row in read_table(tmp_path / "1.parquet").to_pylist() if row["surface"] == "kyoto"]
    assert [row["source"] for row in rows] == ["index", "index", "pronunciation", "pronunciation"]
    assert rows[0]["score"] >= rows[1]["score"]
    assert rows[2]["negative"] == "quito"  # K IY T OW, of K IY OW T OW


def test_update_keeps_what_earlier_rounds_found_and_overwrite_does_not(trained, inputs, tmp_path):
    glossary = glossary_of(tmp_path, list(SURFACES), {})
    earlier = [
        {"surface": "rome", "negative": "paris", "source": "index", "score": 0.5, "round": 1},
        {"surface": "rome", "negative": "gone", "source": "index", "score": 0.9, "round": 1},
    ]
    write_table(tmp_path / "1.parquet", pa.Table.from_pylist(earlier, schema=HARD_NEGATIVES))
    alone = mine(trained, inputs, glossary, tmp_path / "2.parquet", k=1, number=2, pronunciation=False)
    both = mine(
        trained, inputs, glossary, tmp_path / "2u.parquet",
        k=1, number=2, pronunciation=False, earlier=tmp_path / "1.parquet",
    )  # fmt: skip
    assert len(alone["rome"]) == 1
    assert set(both["rome"]) == {*alone["rome"], "paris"}  # and not what the glossary no longer holds


def test_near_homophones_are_by_phonemes_not_by_letters():
    surfaces = {name: name for name in ("write", "right", "ride", "rice", "knight", "weight")}
    homophones = Homophones(surfaces, EnglishPronouncer({}))
    found = nearest_by_sound(surfaces, homophones, 2, 1)
    assert not {("write", "right"), ("right", "write")} & found.keys()  # said alike
    assert {pair[1] for pair in found if pair[0] == "knight"} == {"write", "right"}


def test_negatives_of_an_alignment_retriever_are_refused(inputs, tmp_path):
    schedule = replace(SETTINGS["schedule"], epochs=1)
    train_retriever(**training(inputs, tmp_path / "model", RECIPES["alignment"], schedule=schedule))
    with pytest.raises(InputError, match="those of a pooled retriever"):
        mine(tmp_path / "model", inputs, glossary_of(tmp_path, list(SURFACES), {}), tmp_path / "1.parquet")


@pytest.mark.parametrize("interaction", ["alignment", "pooled"])
def test_the_dev_loss_is_the_objective_on_dev_the_same_every_time(material, inputs, interaction):
    recipe = ALL_LOSSES if interaction == "pooled" else RECIPES["alignment"]
    noisy = replace(material[0], augmentation=SETTINGS["augmentation"])
    plan = plan_of(noisy, recipe, inputs)
    random = plan.batches.random.bit_generator.state
    unseen = replace(material[1][0], chunk_id=material[0].rows[0].chunk_id, seen_term=False)
    loss = DevLoss(plan, [*material[1], unseen], batch_size=3)
    assert len(loss.batches.rows) == 8
    assert plan.batches.rows == material[0].rows
    with torch.inference_mode():
        first, again = loss(plan.model), loss(plan.model)
    assert first == again
    assert plan.batches.random.bit_generator.state == random  # training draws as if there were no dev loss
    whole = DevLoss(plan, material[1], batch_size=8)
    batch = whole.batches([{"chunk": number} for number in range(8)])
    labels = batch.pop("label")
    with torch.inference_mode():
        expected = sum(float(part) for part in plan.loss(list(batch.values()), labels).values())
    whole.batches.start_epoch(0)
    assert whole(plan.model) == pytest.approx(expected, rel=1e-5)


def test_of_epochs_with_equal_recall_and_mrr_the_one_with_the_lowest_loss_is_kept(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    best, control = BestEpoch(model, patience=2), TrainerControl()
    figures = [(0.5, 0.9, 9.0), (1.0, 0.9, 5.0), (1.0, 0.9, 3.0), (1.0, 0.9, 4.0), (1.0, 0.8, 1.0)]
    for epoch, (recall, mrr, loss) in enumerate(figures, start=1):
        nn.init.constant_(model.weight, epoch)
        assert not control.should_training_stop
        metrics = {f"eval_{RECALL}": recall, f"eval_{MRR}": mrr, f"eval_{LOSS}": loss}
        best.on_evaluate(None, TrainerState(epoch=epoch), control, metrics)  # type: ignore[arg-type]
    assert control.should_training_stop  # two epochs after the third
    best.restore()
    assert (best.epoch, model.weight.item()) == (3, 3)
    best.save(tmp_path / "best")
    again = BestEpoch(model, patience=2)
    again.load(tmp_path / "best")
    assert again.best == (1.0, 0.9, -3.0)


def rates(model: Path) -> list[float]:
    lines = [json.loads(line) for line in (model / "train_metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


def test_on_a_plateau_of_the_dev_loss_the_learning_rate_falls(inputs, tmp_path):
    schedule = replace(
        SETTINGS["schedule"], decay="plateau", learning_rate=0.03, plateau_factor=0.25, plateau_patience=0, epochs=6,
        patience=6,
    )  # fmt: skip
    train_retriever(**training(inputs, tmp_path / "model", POOLED, schedule=schedule))
    lines = [json.loads(line) for line in (tmp_path / "model/train_metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_dev_loss"] for line in lines if "eval_dev_loss" in line]
    expected, lowest = [0.03], math.inf
    for loss in losses:
        fell = loss < lowest * (1 - 1e-4)
        lowest = min(loss, lowest)
        expected.append(expected[-1] * (1 if fell else 0.25))
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[::6] == pytest.approx(expected[:-1])
    assert 1 < len(set(rates)) < 6  # both happened


def test_the_head_has_a_learning_rate_of_its_own(inputs, tmp_path):
    once = replace(SETTINGS["schedule"], epochs=1, warmup_ratio=0.0)
    variants = {"still": {"learning_rate": 1e-30}, "slow": {"head_lr_factor": 1e-30}, "even": {}}
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, changes in variants.items():
        train_retriever(**training(inputs, tmp_path / name, POOLED, schedule=replace(once, **changes)))
        files = (tmp_path / name / part / "model.safetensors" for part in ("audio_1_AudioHead", "text_0_SpellingTower"))
        weights |= {f"{name} {part}": load_file(file) for part, file in zip(("head", "tower"), files, strict=True)}

    def moved(name: str, part: str) -> float:
        untrained = weights[f"still {part}"]
        return max((weight - untrained[key]).abs().max().item() for key, weight in weights[f"{name} {part}"].items())

    assert moved("even", "head") > 0.01
    assert moved("slow", "head") < 1e-12
    assert moved("slow", "tower") > 0.01


def test_tensorboard_without_its_package_is_refused_in_a_sentence(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed; pip install"):
        train_retriever(**training(inputs, tmp_path / "model", POOLED, tensorboard=tmp_path / "events"))
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_given_the_losses_and_dev_figures(inputs, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    schedule = replace(SETTINGS["schedule"], epochs=1)
    train_retriever(**training(inputs, tmp_path / "model", POOLED, schedule=schedule, tensorboard=tmp_path / "events"))
    events = accumulators.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "model/train_metrics.jsonl").read_text().splitlines()]
    written = [event.value for event in events.Scalars("train/term_loss")]
    assert written == pytest.approx([line["term_loss"] for line in lines if "term_loss" in line])
    assert math.isfinite(events.Scalars("eval/dev_loss")[-1].value)
