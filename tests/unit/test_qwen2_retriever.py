"""A retriever on Qwen2-Audio's language model, from chunks to figures: the real classes, made tiny, on tones."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_retrieval_stages import SCHEDULE, Corpus, tone
from tiny_qwen2_audio import make_qwen2_audio
from tiny_run import KilledOnce, checksums
from transformers import Qwen2AudioModel

from earmark.artifacts import read_table, write_json
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.files import read_json
from earmark.logs import job_log
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.augmentation import FrameAugmentation
from earmark.retrieval.hard_negatives import mine_hard_negatives, read_hard_negatives
from earmark.retrieval.index import add_surfaces, build_index, load_index
from earmark.retrieval.launch import train_in_processes
from earmark.retrieval.model import load_retriever
from earmark.retrieval.qwen2_audio import load_language_model
from earmark.retrieval.qwen2_language_model import Qwen2LanguageModel
from earmark.retrieval.recipes import Qwen2AudioRecipe, Recipe, recipe_of
from earmark.retrieval.search import TermSearch
from earmark.retrieval.train import Schedule, train_retriever

SPED_UP = replace(SCHEDULE, learning_rate=0.003, head_lr_factor=10.0, epochs=6, patience=6)


def settings(repo: Path, **changes: Any) -> dict[str, Any]:
    """`retrieval.pooled` of config.yaml, as the train stage hands it on, with small batches of text."""
    section = yaml.safe_load((repo / "config.yaml").read_text())["retrieval"]["pooled"]
    unread = ("index", "hard_negatives", "embedding_dim", "audio_head", "text_tower")
    section = {name: value for name, value in section.items() if name not in unread}
    objective = {**section["objective"], "max_surfaces": 8, "max_phrases": 16, "no_term_weight": 0.5}
    return {**section, "towers": "qwen2_audio", "objective": objective, **changes}


def training(corpus: Corpus, output: Path, recipe: Recipe, schedule: Schedule = SPED_UP) -> dict[str, Any]:
    """The arguments of `train_retriever`."""
    return {
        "features": [corpus.features],
        "splits": corpus.folder / "splits",
        "glossary": corpus.glossary,
        "alt2main": corpus.alt2main,
        "output": output,
        "encoder": corpus.encoder,
        "layer": -1,
        "recipe": recipe,
        "schedule": schedule,
        "augmentation": FrameAugmentation(crop_frames=1, mask_spans=1, mask_frames=1, noise=0.0),
        "seed": 3,
        "threads": 1,
    }


@pytest.fixture(scope="module")
def recipe(repo: Path) -> Qwen2AudioRecipe:
    made = recipe_of("pooled", settings(repo), {}, "en")
    assert isinstance(made, Qwen2AudioRecipe)
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("run"))
    corpus.encoder = str(make_qwen2_audio(corpus.folder / "qwen2_audio"))
    corpus.encode(corpus.features)
    return corpus


@pytest.fixture(scope="module")
def run(corpus: Corpus, recipe: Qwen2AudioRecipe) -> SimpleNamespace:
    """A trained, indexed and evaluated run."""
    base = checksums(Path(corpus.encoder))
    run = SimpleNamespace(
        folder=corpus.folder, model=corpus.folder / "models/retriever", index=corpus.folder / "index/retriever"
    )
    train_retriever(**training(corpus, run.model, recipe))
    build_index(run.model, corpus.glossary, corpus.alt2main, run.index, kind="auto", threads=1, max_rejected_fraction=0)
    run.metrics, run.predictions = corpus.evaluate(
        corpus.features, run.model, run.index, corpus.folder / "evaluation/retriever"
    )
    assert checksums(Path(corpus.encoder)) == base
    return run


def test_it_learns_and_ranks_the_terms_that_training_heard(run):
    lines = [json.loads(line) for line in (run.model / "train_metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] / 3
    assert {"term_loss", "text_loss", "no_term_loss"} <= lines[0].keys()
    assert run.metrics["test"]["retrieval"]["seen"]["recall@1"]["value"] == 1
    assert {row["chunk_id"] for row in run.predictions} >= {f"test-0-{number}" for number in range(2)}


def test_what_is_frozen_is_the_same_byte_for_byte_and_what_trained_has_moved(corpus, run):
    source = Qwen2AudioModel.from_pretrained(corpus.encoder, dtype=torch.bfloat16)
    tower = load_file(run.model / "audio_0_Qwen2AudioTowerFrames/model.safetensors")
    assert tower.keys() == {f"encoder.{name}" for name in source.audio_tower.state_dict()}
    for name, weight in source.audio_tower.state_dict().items():
        assert torch.equal(tower[f"encoder.{name}"], weight), name
    adapters = load_file(run.model / "audio_1_Qwen2LanguageModel/model.safetensors")
    assert len(adapters) == 2 * 2 * 2  # layers, projections, A and B
    assert all(weight.any() for name, weight in adapters.items() if "lora_B" in name)  # zero before the first step
    audit = read_json(run.model / "audit.json")
    trainable = {name: part["trainable"] for name, part in audit.items()}
    assert trainable["encoder"] == trainable["projector"] == 0
    assert trainable["language_model"] == sum(weight.numel() for weight in adapters.values())
    for projection in ("audio_projection", "text_projection"):
        assert trainable[projection] == audit[projection]["parameters"] == 64 * 512 + 512


def test_a_part_that_trains_by_mistake_is_refused(corpus):
    base = load_language_model(corpus.encoder, 0)
    module = Qwen2LanguageModel(
        corpus.encoder, 0, prompt="", lora_r=2, lora_alpha=4, lora_dropout=0.0, unfreeze_layers=0, model=base
    )
    assert audit_modules({"lm": base}, set(), {"lm": module.trained})["lm"]["trainable"] > 0
    base.language_model.norm.weight.requires_grad_(True)
    with pytest.raises(EarmarkError, match=r"lm: 1 parameters .* such as language_model\.norm\.weight"):
        audit_modules({"lm": base}, set(), {"lm": module.trained})


def test_projections_learn_ten_times_as_fast_as_the_adapters_of_whose_high_rate_it_warns(
    corpus, recipe, tmp_path, monkeypatch, caplog
):
    rates: dict[float, int] = {}

    def noted(self: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        for group in self.param_groups:
            rates[group["initial_lr"]] = rates.get(group["initial_lr"], 0) + len(group["params"])
        raise EarmarkError("seen enough")

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    with pytest.raises(EarmarkError, match="seen enough"):
        train_retriever(**training(corpus, tmp_path / "model", recipe))
    assert rates == {0.003: 8 + 1, 0.03: 4}  # adapters and the loss's threshold; weight and bias of two projections
    warning = "learning_rate is 0.003, and a pretrained language model trains with it: 0.0001, with head_lr_factor: 10"
    assert warning in caplog.text
    caplog.clear()
    with pytest.raises(EarmarkError, match="seen enough"):
        train_retriever(**training(corpus, tmp_path / "model", recipe, replace(SPED_UP, learning_rate=1e-4)))
    assert "learning_rate" not in caplog.text


def test_only_what_trained_and_the_tower_are_saved(corpus, run):
    sizes = {path.parent.name: path.stat().st_size for path in run.model.glob("*/model.safetensors")}
    assert sizes.keys() == {
        "audio_0_Qwen2AudioTowerFrames", "audio_1_Qwen2LanguageModel", "audio_2_MeanProjection", "text_0_Qwen2TextTower"
    }  # fmt: skip
    with safe_open(run.model / "audio_1_Qwen2LanguageModel/model.safetensors", "pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118 (no dict)


def test_a_lost_adapter_and_another_base_are_errors(corpus, run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    path = model / "audio_1_Qwen2LanguageModel/model.safetensors"
    weights = load_file(path)
    save_file(dict(list(weights.items())[1:]), path)
    with pytest.raises(InputError, match="1 trained weights are missing"):
        load_retriever(model)
    save_file(weights, path)
    other = make_qwen2_audio(tmp_path / "other", seed=1)
    config = read_json(path.with_name("config.json"))
    write_json(path.with_name("config.json"), {**config, "source": str(other)})
    with pytest.raises(ConfigError, match="other weights than those this retriever was trained on"):
        load_retriever(model)


def test_audio_and_cached_frames_give_the_score_that_the_evaluation_saw(corpus, run):
    model = load_retriever(run.model)
    rows = {row["chunk_id"]: row["audio"]["bytes"] for row in read_table(corpus.chunks).to_pylist()}
    chunk = next(row for row in run.predictions if row["chunk_id"] == "test-0-0")
    (scores,) = model.score([decode_audio(rows["test-0-0"])], ["rome"])
    best = dict(zip(chunk["top_terms"], chunk["top_scores"], strict=True))
    assert scores[0] == pytest.approx(best["rome"], abs=5e-3)  # frames are cached in float16


def test_a_recording_is_searched(run, tmp_path):
    path = tmp_path / "talk.flac"
    random = np.random.default_rng(3)
    silence = tone(None, 2.5, random)
    soundfile.write(path, np.concatenate([silence, tone("oslo", 0.8, random), silence]), SAMPLE_RATE)
    hits = TermSearch(run.folder).ranking(path, windows_s=(1.0,))
    assert hits[0].term == "oslo" and 1.5 < hits[0].start_s < 3.5


def test_an_index_of_other_adapters_is_refused_and_surfaces_join_it_without_training(corpus, run, tmp_path):
    shutil.copytree(run.index, tmp_path / "index")
    assert add_surfaces(tmp_path / "index", run.model, {"santiago": "santiago"}) == []
    assert "santiago" in load_index(tmp_path / "index", load_retriever(run.model)).surfaces
    model = load_retriever(run.model)
    owner = model[0].sub_modules["audio"][1]
    with torch.no_grad():
        owner.base.get_parameter(owner.trained[0]).add_(0.1)
    with pytest.raises(InputError, match="made for another retriever"):
        load_index(run.index, model)


def test_hard_negatives_are_mined_from_it_and_trained_against(corpus, run, repo, tmp_path):
    mine_hard_negatives(
        run.model, corpus.folder / "splits/train.parquet", corpus.glossary, corpus.alt2main, tmp_path / "1.parquet",
        earlier=None, number=1, k=1, pronunciation=False, language="de", lexicon={}, index="flat", threads=1,
    )  # fmt: skip
    negatives = read_hard_negatives(tmp_path / "1.parquet")
    assert {"rome", "oslo", "new york"} <= negatives.keys()
    again = recipe_of("pooled", settings(repo), {}, "en", negatives, 1)
    train_retriever(**training(corpus, tmp_path / "model", again, replace(SPED_UP, epochs=1)))
    assert "hard_negative_loss" in (tmp_path / "model/train_metrics.jsonl").read_text()


def test_another_encoder_is_refused_with_the_setting_that_names_it(corpus, recipe, tmp_path):
    other = Corpus(tmp_path / "run")
    other.encode(other.features)
    with pytest.raises(ConfigError, match=r"towers is qwen2_audio, but retrieval\.encoder is .* of Whisper's encoder"):
        train_retriever(**training(other, tmp_path / "model", recipe))


def test_two_processes_in_sub_batches_end_with_the_model_of_one(corpus, repo, tmp_path):
    section = settings(repo)
    still = recipe_of("pooled", {**section, "qwen2_audio": {**section["qwen2_audio"], "lora_dropout": 0.0}}, {}, "en")
    trained = []
    for count, size in ((1, None), (2, 2)):
        schedule = replace(SPED_UP, epochs=2, batch_size=5, sub_batch_size=size)
        arguments = training(corpus, tmp_path / str(count), still, schedule)
        train_in_processes(count, **arguments | {"threads": count})
        trained.append({p.parent.name: load_file(p) for p in (tmp_path / str(count)).glob("*/model.safetensors")})
    one, two = trained
    assert len(one) == 4
    for part in one:
        for name, weight in one[part].items():
            assert torch.allclose(weight.float(), two[part][name].float(), atol=2e-4), (part, name)


def test_a_killed_training_goes_on_and_ends_with_the_same_model(corpus, run, recipe, tmp_path):
    deadly = KilledOnce(recipe, rank=0, batch=8, flag=tmp_path / "killed")  # in the third epoch
    arguments = training(corpus, tmp_path / "model", deadly, SPED_UP)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["earmark.retrieval.train"])
    for status in (-signal.SIGKILL, 0):
        process = processes.Process(target=_train, args=(arguments, tmp_path / "log"))
        process.start()
        process.join(120)
        assert process.exitcode == status
        assert (tmp_path / "model").exists() == (status == 0)
    assert "goes on from" in (tmp_path / "log").read_text()
    assert checksums(tmp_path / "model") == checksums(run.model)


def _train(arguments: dict[str, Any], log: Path) -> None:
    """The child process."""
    with job_log(log):
        train_retriever(**arguments)
