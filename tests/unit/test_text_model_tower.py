"""The text route through a frozen sentence model, alone and fused with spelling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_text_model import STATIC_DIM, make_tiny_static_model, make_tiny_text_model
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.audit import audit_modules
from earmark.retrieval.index import index_surfaces, load_index, write_index
from earmark.retrieval.model import TermRetriever, embed_surfaces, load_retriever, pooled_retriever
from earmark.retrieval.processes import Processes
from earmark.retrieval.sub_batches import embed_in_sub_batches
from earmark.retrieval.text_model_tower import TextModelTower
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.whisper_frames import WhisperFrames

SURFACES = ["new york", "rome", "big apple", "zanzibar", "oslo"]
SPELLING: dict[str, Any] = {
    "buckets": 64, "shortest_ngram": 2, "longest_ngram": 3, "hidden_dim": 8, "dropout": 0.0,
}  # fmt: skip
MODELS = ["bert", "static"]
FUSION = [None, SPELLING]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("text_models")
    return {"bert": make_tiny_text_model(folder / "bert"), "static": make_tiny_static_model(folder / "static")}


def tower_of(source: Path, spelling: dict[str, Any] | None = None, dropout: float = 0.0) -> TextModelTower:
    torch.manual_seed(0)
    return TextModelTower.pretrained(str(source), hidden_dim=8, embedding_dim=6, dropout=dropout, spelling=spelling)


def retriever(tower: TextModelTower) -> TermRetriever:
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    encoder = WhisperFrames.of(WhisperEncoder(config), layer=1)
    head = AudioHead(16, 8, embedding_dim=6, queries=1, blocks=1, kernel_size=3, dropout=0.0)
    return pooled_retriever(encoder, head, tower)


def embed(tower: TextModelTower, features: dict[str, Any]) -> torch.Tensor:
    return tower(dict(features))["sentence_embedding"]


@pytest.mark.parametrize("kind", MODELS)
def test_text_vectors_are_the_models_own_at_unit_length(kind, models):
    tower = tower_of(models[kind])
    vectors = tower.preprocess(SURFACES)["text_vectors"]
    own = SentenceTransformer(str(models[kind]), device="cpu").encode(SURFACES)
    assert not np.allclose(np.linalg.norm(own, axis=1), 1, atol=0.1)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert vectors.shape == (5, 16 if kind == "bert" else STATIC_DIM)
    assert np.allclose(vectors.numpy(), own, atol=1e-6)
    assert np.linalg.matrix_rank(vectors.numpy(), tol=1e-3) == 5


def test_vectors_are_the_same_whatever_was_embedded_before_and_in_mixed_precision(models):
    tower = tower_of(models["bert"])
    tower.preprocess(["rome", "a much longer text than any other"])
    with torch.autocast("cpu", torch.bfloat16):
        vectors = tower.preprocess(SURFACES)["text_vectors"]
        assert embed(tower, {"text_vectors": vectors}).dtype == torch.bfloat16
    assert torch.equal(vectors, tower_of(models["bert"]).preprocess(SURFACES)["text_vectors"])


@pytest.mark.parametrize("spelling", FUSION)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_reach_what_trains_and_the_text_model_stays_as_it_is(kind, spelling, models):
    tower = tower_of(models[kind], spelling)
    tower.text_model.train()
    tower.train()
    assert not any(module.training for module in tower.text_model.modules())
    embed(tower, tower.preprocess(SURFACES)).square().sum().backward()
    assert tower.training and not any(module.training for module in tower.text_model.modules())
    parts = tower.trained_parts()
    assert set(parts) == ({"text_projection", "spelling_tower"} if spelling else {"text_projection"})
    trained = {id(parameter) for part in parts.values() for parameter in part.parameters()}
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained) == (not name.startswith("text_model")), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name
    audit = audit_modules({"text_model": tower.text_model, **parts}, trained=parts)
    assert audit["text_model"]["trainable"] == 0 < audit["text_projection"]["trainable"]


def test_fused_embeddings_are_the_sum_of_meaning_and_spelling(models):
    tower = tower_of(models["bert"], SPELLING)
    features = tower.preprocess(SURFACES)
    assert isinstance(tower.spelling_tower, SpellingTower)
    meaning = tower.projection(features["text_vectors"])
    spelling = tower.spelling_tower(tower.spelling_tower.preprocess(SURFACES))["sentence_embedding"]
    assert torch.allclose(embed(tower, features), meaning + spelling, atol=1e-6)
    assert spelling.norm() > 0.1 < meaning.norm()


@pytest.mark.parametrize("spelling", FUSION)
@pytest.mark.parametrize("make", [make_tiny_text_model, make_tiny_static_model])
def test_a_saved_retriever_needs_nothing_of_the_source(make, spelling, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = make(tmp_path / "source")
    model = retriever(tower_of(source, spelling, dropout=0.5)).eval()
    before = embed_surfaces(model, SURFACES)
    model.save(str(tmp_path / "saved"), create_model_card=False)
    shutil.rmtree(tmp_path / "source")
    loaded = load_retriever(tmp_path / "saved")
    assert torch.allclose(embed_surfaces(loaded, SURFACES), before, atol=1e-6)
    tower = loaded[0].sub_modules["text"][0]
    assert (tower.dropout, tower.spelling, tower.get_embedding_dimension()) == (0.5, spelling, 6)
    assert not any(parameter.requires_grad for parameter in tower.text_model.parameters())
    clip = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert np.allclose(loaded.score([clip], SURFACES), model.score([clip], SURFACES), atol=1e-6)
    assert not list((tmp_path / "saved").rglob("README.md")) and not list((tmp_path / "saved").rglob("*.bin"))
    folder = tmp_path / "saved/text_0_TextModelTower"
    assert not any(name.startswith("text_model") for name in load_file(folder / "model.safetensors"))
    files = list((tmp_path / "saved").rglob("*.safetensors"))
    assert len({file.stat().st_mode for file in [*files, folder / "config.json"]}) == 1


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_saved_weights_that_do_not_fit_are_an_error(change, models, tmp_path):
    tower_of(models["static"]).save(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    name = "text_projection.3.bias"
    if change == "missing":
        del weights[name]
    else:
        name = "text_projection.5.bias"
        weights[name] = torch.zeros(6)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=rf'{change.title()} key.*"{name}"'):
        TextModelTower.load(str(tmp_path))


def test_a_retriever_without_its_text_model_is_an_input_error(models, tmp_path):
    retriever(tower_of(models["bert"])).save(str(tmp_path), create_model_card=False)
    (tmp_path / "text_0_TextModelTower/text_model/modules.json").unlink()
    with pytest.raises(InputError, match="the text model is missing"):
        load_retriever(tmp_path)


def test_code_in_a_saved_text_model_is_not_run(models, tmp_path):
    retriever(tower_of(models["static"])).save(str(tmp_path), create_model_card=False)
    folder = tmp_path / "text_0_TextModelTower/text_model"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Code"}]))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Code: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        TermRetriever(str(tmp_path), local_files_only=True, trust_remote_code=True)
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(ConfigError, match="needs no code of its own"):
        tower_of(folder)
    assert not (tmp_path / "was_run").exists()


def test_what_is_no_text_model_is_a_config_error(models, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no modules.json.*Give a folder or hub id"):
        tower_of(tmp_path)
    with pytest.raises(ConfigError, match="no text model could be loaded"):
        tower_of(tmp_path / "nowhere" / "at" / "all")
    shutil.copytree(models["static"], tmp_path / "mute")
    tokenizer = json.loads((tmp_path / "mute/tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {"b": 0}, "unk_token": "<unknown>"}  # which is not there: reading "a" fails
    (tmp_path / "mute/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="gives no vector for a text"):
        tower_of(tmp_path / "mute")


def test_a_surface_that_the_model_cannot_embed_is_an_error_or_a_warning(models, caplog):
    tower = tower_of(models["static"])
    with pytest.raises(InputError, match="surface 1 of 2 is empty"):
        tower.preprocess(["rome", " "])
    tower.preprocess(["rome"])
    assert not caplog.messages
    for _ in range(2):
        tower.preprocess(["rome", "東京"])  # it has nothing but Latin letters
    assert len(caplog.messages) == 1 and "knows nothing of '東京'" in caplog.text
    fused = tower_of(models["static"], SPELLING)
    features = fused.preprocess(["大阪", "東京"])  # spelling tells them apart
    assert not features["text_vectors"].any()
    assert not torch.allclose(*embed(fused, features))
    with torch.no_grad():
        fused.text_model[0].embedding.weight[0] = torch.nan
    with pytest.raises(InputError, match="makes no vector of 'a'"):
        fused.preprocess(["b", "a"])


@pytest.mark.parametrize("spelling", FUSION)
def test_features_can_be_shared_and_divided_by_rows(spelling, models):
    tower = tower_of(models["bert"], spelling)
    features = tower.preprocess(SURFACES)
    whole = embed(tower, features)
    shares = [embed(tower, Processes(rank, 2).share(features)) for rank in range(2)]
    assert torch.allclose(torch.cat(shares)[: len(SURFACES)], whole, atol=1e-6)

    def gradients(embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        tower.zero_grad()
        embedding.square().sum().backward()
        return {name: weight.grad for name, weight in tower.named_parameters() if weight.grad is not None}

    expected = gradients(whole)
    divided = gradients(embed_in_sub_batches(tower, features, 2)["sentence_embedding"])
    assert divided.keys() == expected.keys() and expected
    assert all(torch.allclose(divided[name], expected[name], atol=1e-6) for name in expected)


def test_an_index_is_of_one_text_model(models, tmp_path):
    """Whose trained weights are alike, but not what is behind them."""
    here, there = (tower_of(make_tiny_text_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    there.source = here.source
    there.projection.load_state_dict(here.projection.state_dict())
    model, other = retriever(here), retriever(there)
    index, unspelled = index_surfaces(model, {surface: surface for surface in SURFACES})
    assert unspelled == []
    write_index(index, tmp_path / "index", model)
    model.save(str(tmp_path / "model"), create_model_card=False)
    assert load_index(tmp_path / "index", load_retriever(tmp_path / "model")).surfaces == tuple(SURFACES)
    with pytest.raises(EarmarkError, match="made for another retriever"):
        load_index(tmp_path / "index", other)


def test_moving_a_retriever_moves_its_text_model(models):
    model = retriever(tower_of(models["bert"])).to("meta")
    tower: Any = model[0].sub_modules["text"][0]
    assert {weight.device.type for weight in tower.text_model.state_dict().values()} == {"meta"}
