"""Qwen2-Audio at a clip's true length, and as a part of the retriever; the real classes, made tiny."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Module
from tiny_qwen2_audio import HIDDEN_DIM, make_qwen2_audio
from transformers import Qwen2AudioConfig, Qwen2AudioModel, Qwen2Tokenizer, WhisperConfig, WhisperFeatureExtractor

from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError, ConfigError, EarmarkError, InputError
from earmark.qwen2_audio import load_tokenizer
from earmark.retrieval.model import TermRetriever, language_model_retriever
from earmark.retrieval.qwen2_audio import (
    audio_prompt_ids,
    audio_states,
    load_audio_tower,
    load_language_model,
    text_states,
    weights_digest,
)
from earmark.retrieval.qwen2_audio_frames import Qwen2AudioTowerFrames
from earmark.retrieval.qwen2_language_model import MeanProjection, Qwen2LanguageModel, train_language_model
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower

# Odd and even numbers of mel frames, of encoder states, and clips that leave no room for the convolutions' context.
SAMPLES = [4_800, 5_000, 9_999, 16_161, 29 * SAMPLE_RATE, 479_500, 30 * SAMPLE_RATE]
CONFIG_7B = {
    "audio_token_index": 151646,
    "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 156032,
    },
}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads a base by itself takes a GPU and bfloat16 where it finds them; the comparisons are in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2_audio(tmp_path_factory.mktemp("qwen2-audio"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2AudioModel:
    return load_language_model(str(folder), seed=0, device="cpu")


@pytest.fixture(scope="module")
def tower(folder: Path) -> Qwen2AudioTowerFrames:
    return Qwen2AudioTowerFrames.pretrained(str(folder), seed=0)


def clips(*samples: int) -> list[np.ndarray]:
    return [0.1 * np.random.default_rng(count).standard_normal(count).astype(np.float32) for count in samples]


def encode(tower: Qwen2AudioTowerFrames, some: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """The tower's "frames"[B, T, dim] and "frame_lengths"[B], as a cache gives them."""
    with torch.inference_mode():
        heard = tower(tower.preprocess(some))
    return {name: heard[name].clone() for name in ("frames", "frame_lengths")}


@dataclass(frozen=True)
class Padded:
    """What transformers computes: audio tower and language model on clips padded to 30 s."""

    prompt_ids: list[int]  # with the token that begins audio
    frames: dict[int, torch.Tensor]  # by the clip's samples: frames[T, dim] of the audio tower
    states: dict[int, torch.Tensor]  # of the language model, at the audio positions


@pytest.fixture(scope="module")
def padded(folder: Path) -> Padded:
    model = Qwen2AudioModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder))
    before = tokenizer("the term is<|audio_bos|>")["input_ids"]
    after = tokenizer("<|audio_eos|>what was said?")["input_ids"]
    projected: list[torch.Tensor] = []
    model.multi_modal_projector.register_forward_pre_hook(lambda _, given: projected.append(*given))
    frames, states = {}, {}
    for samples in SAMPLES:
        inputs = WhisperFeatureExtractor(feature_size=128)(
            clips(samples), sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
        )
        count = int(model.audio_tower._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))[1])
        tokens = torch.tensor([[*before, *[model.config.audio_token_id] * count, *after]])
        with torch.inference_mode():
            output = model(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                input_features=inputs["input_features"],
                feature_attention_mask=inputs["attention_mask"],
            )
        frames[samples] = projected[-1][0, :count]
        states[samples] = output.last_hidden_state[0, len(before) : len(before) + count]
    return Padded(before, frames, states)


def test_clips_of_all_lengths_give_the_same_frames_and_states_in_one_batch(model, tower, padded, folder):
    before = audio_prompt_ids(load_tokenizer(str(folder)), "the term is")
    assert before == padded.prompt_ids and len(before) > 2
    heard = encode(tower, clips(*SAMPLES))
    with torch.inference_mode():
        states = audio_states(model, heard["frames"], heard["frame_lengths"], before)
    assert states.shape == (*heard["frames"].shape[:2], HIDDEN_DIM)
    for index, samples in enumerate(SAMPLES):
        count = len(padded.frames[samples])
        assert heard["frame_lengths"][index] == count
        assert torch.allclose(heard["frames"][index, :count], padded.frames[samples], atol=1e-5, rtol=0)
        assert torch.allclose(states[index, :count], padded.states[samples], atol=1e-5, rtol=0)
        assert not heard["frames"][index, count:].any() and not states[index, count:].any()


@pytest.mark.parametrize("samples", SAMPLES)
def test_a_clip_alone_gives_the_frames_of_the_padded_clip(tower, padded, samples):
    [frames] = tower.encode(clips(samples))
    assert frames.shape == padded.frames[samples].shape == (len(padded.states[samples]), tower.frame_dim)
    assert np.allclose(frames, padded.frames[samples], atol=1e-5, rtol=0)


def test_a_clip_too_short_for_a_frame_is_refused(tower):
    assert len(tower.encode(clips(321))[0]) == 1
    with pytest.raises(AudioError, match="too short for one frame"):
        tower.preprocess(clips(320))


def test_padded_terms_have_the_states_of_terms_alone(model, folder):
    tokenizer = load_tokenizer(str(folder))
    terms = ["in", "the contraction of time", "北京"]
    batch = tokenizer(terms, padding=True, return_tensors="pt")
    prompt = tokenizer("the term is")["input_ids"]
    with torch.inference_mode():
        states = text_states(model, batch["input_ids"], batch["attention_mask"], prompt)
        for index, term in enumerate(terms):
            ids = torch.tensor([prompt + tokenizer(term)["input_ids"]])
            alone = model.language_model(input_ids=ids).last_hidden_state[0, len(prompt) :]
            assert torch.allclose(states[index, : len(alone)], alone, atol=1e-5)
            assert not states[index, len(alone) :].any()


@pytest.mark.parametrize(
    ("upper", "language_model", "head"),
    [("", "language_model.model.", "language_model.lm_head"), ("model.", "model.language_model.", "lm_head")],
    ids=["hub", "transformers 5"],
)
def test_both_spellings_of_a_checkpoint_load_all_weights(folder, tmp_path, upper, language_model, head):
    shutil.copy(folder / "config.json", tmp_path)
    weights = Qwen2AudioModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    spelled = {
        (name.replace("language_model.", language_model) if name.startswith("language") else upper + name): weight
        for name, weight in weights.items()
    }
    rows = len(load_tokenizer(str(folder)))
    save_file({**spelled, f"{head}.weight": torch.zeros(rows, 64)}, tmp_path / "model.safetensors")
    loaded, tower = load_language_model(str(tmp_path), seed=0, device="cpu"), load_audio_tower(str(tmp_path), seed=0)
    found = {**loaded.state_dict(), **{f"audio_tower.{name}": weight for name, weight in tower.state_dict().items()}}
    assert found.keys() == weights.keys()  # each once: the language model comes without the tower
    assert all(torch.equal(weight, weights[name]) for name, weight in found.items())
    assert not any(parameter.requires_grad for part in (loaded, tower) for parameter in part.parameters())


@pytest.mark.parametrize(
    ("load", "lost"),
    [(load_language_model, "language_model.layers.1.mlp.up_proj.weight"), (load_audio_tower, "layers.1.fc2.weight")],
)
def test_a_missing_and_a_mismatched_weight_are_named(folder, tmp_path, load, lost):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.replace(".model.", ".").endswith(lost)]
    save_file({**weights, name: torch.zeros(3, 3)}, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"1 weights do not have the shape .*{lost}"):
        load(str(broken), seed=0)
    del weights[name]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"lacks 1 weights, such as .*{lost}"):
        load(str(broken), seed=0)
    (broken / "model.safetensors").write_bytes(b"broken off")
    with pytest.raises(ConfigError, match="no Qwen2-Audio weights"):
        load(str(broken), seed=0)


def test_other_models_and_missing_folders_are_configuration_errors(folder, tmp_path):
    WhisperConfig().save_pretrained(tmp_path)
    for source in (str(tmp_path), f"random:{tmp_path}"):
        with pytest.raises(ConfigError, match="a model of type 'whisper'"):
            load_language_model(source, seed=0)
    with pytest.raises(ConfigError, match="nowhere"):
        load_language_model(str(tmp_path / "nowhere"), seed=0)
    tokenizer = load_tokenizer(str(folder))
    plain = Qwen2Tokenizer({"a": 0}, [])
    assert audio_prompt_ids(tokenizer, "") == [tokenizer.convert_tokens_to_ids("<|audio_bos|>")]
    with pytest.raises(ConfigError, match="audio_bos"):
        audio_prompt_ids(plain, "")
    with pytest.raises(ConfigError, match="float16"):
        load_language_model(str(folder), seed=0, dtype=torch.float16)


def test_the_random_control_follows_the_seed_in_any_type(model, folder):
    first, again = (load_language_model(f"random:{folder}", 1, device="cpu").state_dict() for _ in range(2))
    other = load_language_model(f"random:{folder}", 2, device="cpu").state_dict()
    half = load_language_model(f"random:{folder}", 1, device="cpu", dtype=torch.bfloat16).state_dict()
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert first.keys() == model.state_dict().keys()
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert half[name].dtype == torch.bfloat16 and torch.equal(half[name], first[name].bfloat16())


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_places_in_a_sequence_are_told_in_float32_whatever_the_weights_are(folder, prefix):
    whole, half = (
        load_language_model(f"{prefix}{folder}", 0, device="cpu", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    frequencies = half.language_model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, whole.language_model.rotary_emb.inv_freq)


def test_a_digest_knows_a_checkpoint_in_any_type_and_tells_a_fine_tuned_one_from_it(folder):
    model, half = (load_language_model(str(folder), 0, device="cpu", dtype=t) for t in (torch.float32, torch.bfloat16))
    digest = weights_digest(model)
    assert weights_digest(half) == digest
    with torch.no_grad():
        model.language_model.layers[1].self_attn.v_proj.weight.mul_(1.02)  # as merged adapters would
    assert weights_digest(model) != digest


@pytest.mark.parametrize(("rank", "adapters"), [(8, 4_194_304), (16, 8_388_608)])
def test_lora_on_the_7b_model_has_as_many_parameters_as_counted_by_hand(rank, adapters):
    with torch.device("meta"):
        model = Qwen2AudioModel(Qwen2AudioConfig(**CONFIG_7B)).requires_grad_(False)
    assert sum(p.numel() for p in model.audio_tower.parameters()) == 636_968_960
    assert sum(p.numel() for p in model.multi_modal_projector.parameters()) == 5_246_976
    # The output layer is not loaded: 156,032 rows of 4,096.
    assert sum(p.numel() for p in model.language_model.parameters()) == 7_754_878_976 - 156_032 * 4_096
    names = train_language_model(model, lora_r=rank, lora_alpha=32, lora_dropout=0.1, unfreeze_layers=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapters
    assert sorted(trained) == names and all(name.startswith("language_model.layers.") for name in names)


def test_unfrozen_layers_train_whole_and_the_others_get_adapters(folder):
    model = load_language_model(str(folder), seed=0, device="cpu")
    trained = set(train_language_model(model, lora_r=4, lora_alpha=8, lora_dropout=0.0, unfreeze_layers=1))
    last = {name for name, _ in model.named_parameters() if name.startswith("language_model.layers.1.")}
    assert last < trained and "language_model.layers.1.mlp.up_proj.weight" in last
    assert {name.split(".")[4] + "." + name.split(".")[5] for name in trained - last} == {
        f"{projection}.lora_{side}" for projection in ("q_proj", "v_proj") for side in "AB"
    }
    assert all(name.startswith("language_model.layers.0.self_attn.") for name in trained - last)


@pytest.mark.parametrize(("rank", "unfreeze_layers"), [(-1, 0), (4, 3), (4, 2), (0, -1)])
def test_numbers_that_do_not_fit_the_model_are_refused(folder, rank, unfreeze_layers):
    model = load_language_model(str(folder), seed=0, device="cpu")
    with pytest.raises(ConfigError, match="layers"):
        train_language_model(model, lora_r=rank, lora_alpha=8, lora_dropout=0.0, unfreeze_layers=unfreeze_layers)


def test_a_model_is_not_adapted_twice(folder):
    model = load_language_model(str(folder), seed=0, device="cpu")
    train_language_model(model, lora_r=4, lora_alpha=8, lora_dropout=0.0, unfreeze_layers=0)
    with pytest.raises(ConfigError, match="trains already"):
        train_language_model(model, lora_r=4, lora_alpha=8, lora_dropout=0.0, unfreeze_layers=0)


def language_model(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> Qwen2LanguageModel:
    base = load_language_model(str(folder), seed=0, device="cpu", dtype=dtype)
    training = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "unfreeze_layers": 0, **options}
    return Qwen2LanguageModel(str(folder), 0, prompt="the term is", model=base, **training)


@pytest.fixture
def heard(tower: Qwen2AudioTowerFrames) -> dict[str, torch.Tensor]:
    return encode(tower, clips(5_000, 16_161))


def disturb(module: Qwen2LanguageModel) -> None:
    """New adapters change nothing (lora_B is zero): move the trained weights, so that they matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name in module.trained:
            parameter = module.base.get_parameter(name)
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_moves_the_trained_weights_in_float32_and_not_one_bit_of_the_others(folder, heard, dtype):
    module = language_model(folder, dtype, unfreeze_layers=1, gradient_checkpointing=True).train()
    assert module.base.language_model.layers[0].training and not module.base.multi_modal_projector.training
    parameters = dict(module.base.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    # Everything goes to the optimiser, with weight decay: what is frozen must be so without its help.
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    computed = set()
    unfrozen = module.base.language_model.layers[1].mlp.up_proj
    unfrozen.register_forward_hook(lambda _, __, output: computed.add(output.dtype))
    for _ in range(2):  # lora_A's gradient is zero at the first step
        states = module(heard)["frames"]
        assert states.dtype == torch.float32
        optimizer.zero_grad()
        states.square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    # A key's bias shifts all of a query's scores alike: its gradient is rounding error, zero in the limit.
    assert changed | {"language_model.layers.1.self_attn.k_proj.bias"} >= set(module.trained)
    assert changed <= set(module.trained)
    assert not any(name.startswith("multi_modal_projector") for name in changed)
    assert {parameters[name].dtype for name in module.trained} == {torch.float32} and computed == {dtype}
    assert {parameter.dtype for name, parameter in parameters.items() if name not in module.trained} == {dtype}
    assert all(torch.isfinite(parameter).all() for parameter in parameters.values())


def test_gradient_checkpointing_gives_the_same_gradients(folder, heard):
    gradients = []
    for checkpointing in (False, True):
        module = language_model(folder, lora_dropout=0.0, gradient_checkpointing=checkpointing)
        disturb(module)
        ran = []
        module.base.language_model.layers[0].self_attn.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        module.train()(heard)["frames"].square().mean().backward()
        gradients.append([module.base.get_parameter(name).grad for name in module.trained])
        assert len(ran) == (2 if checkpointing else 1)
    assert all(torch.allclose(plain, again, atol=1e-6) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def test_training_in_half_precision_is_refused_with_the_reason(folder):
    module = language_model(folder)
    for half in (torch.float16, torch.bfloat16):
        module.to(half)
        with pytest.raises(ConfigError, match=r"lora_A.*AdamW's eps"):
            module.train()
    module.float().train()


def test_only_the_trained_weights_are_saved_and_they_give_the_same_states(folder, heard, tmp_path):
    module = language_model(folder, unfreeze_layers=1).eval()
    untrained = module(heard)["frames"].detach()
    disturb(module)
    module.save(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    saved = load_file(tmp_path / "model.safetensors")
    assert sorted(saved) == module.trained
    assert json.loads((tmp_path / "config.json").read_text())["source"] == str(folder)
    loaded = Qwen2LanguageModel.load(str(tmp_path)).eval()
    with torch.inference_mode():
        expected, actual = module(heard)["frames"], loaded(heard)["frames"]
    assert torch.equal(expected, actual) and not torch.allclose(expected, untrained, atol=1e-3)

    del saved[module.trained[0]]
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"1 trained weights are missing .*{module.trained[0]}"):
        Qwen2LanguageModel.load(str(tmp_path))


@pytest.mark.parametrize("unfreeze_layers", [0, 1])
def test_a_saved_base_makes_the_folder_all_that_is_needed(folder, heard, tmp_path, unfreeze_layers):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    module = language_model(source, unfreeze_layers=unfreeze_layers, save_base=True).eval()
    disturb(module)
    (tmp_path / "saved").mkdir()
    module.save(str(tmp_path / "saved"))
    shutil.rmtree(source)
    (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = Qwen2LanguageModel.load(str(tmp_path), subfolder="moved").eval()
    assert torch.equal(loaded(heard)["frames"], module(heard)["frames"])
    assert loaded.base_digest == module.base_digest
    mode = (tmp_path / "moved/base/config.json").stat().st_mode
    assert (tmp_path / "moved/base/model.safetensors").stat().st_mode == mode  # whoever may read the folder
    saved = load_file(tmp_path / "moved/base/model.safetensors")
    assert not [name for name in saved if "lora" in name or "audio_tower" in name]


def test_a_base_is_found_from_any_folder_and_only_if_it_is_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    base = load_language_model(folder.name, seed=0, device="cpu")
    module = Qwen2LanguageModel(
        folder.name, 0, prompt="", lora_r=4, lora_alpha=8, lora_dropout=0.0, unfreeze_layers=0, model=base
    )
    module.save(str(tmp_path))
    os.chdir(tmp_path)
    assert Qwen2LanguageModel.load(str(tmp_path)).base_digest == module.base_digest
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "source": f"random:{folder}"}))
    with pytest.raises(ConfigError, match="other weights"):
        Qwen2LanguageModel.load(str(tmp_path))


def test_a_term_is_the_mean_over_its_own_tokens_whatever_else_is_in_the_batch(folder):
    owner = language_model(folder)
    disturb(owner)
    text_tower = Qwen2TextTower.of(owner.eval(), 12, "Term: ").eval()
    terms = ["the contraction of time", "in"]
    batch = text_tower(text_tower.preprocess(terms))["sentence_embedding"]
    assert batch.shape == (2, 12)
    tokenizer = load_tokenizer(str(folder))
    prompt = tokenizer("Term: ")["input_ids"]
    for index, term in enumerate(terms):
        ids = torch.tensor([prompt + tokenizer(term)["input_ids"]])
        mean = owner.base.language_model(input_ids=ids).last_hidden_state[0, len(prompt) :].mean(dim=0)
        assert torch.allclose(batch[index], text_tower.projection(mean), atol=1e-5)
    with pytest.raises(InputError, match="surface 1 of 2 is empty"):
        text_tower.preprocess(["in", " "])


def test_a_chunk_is_the_mean_over_its_own_frames(folder, heard):
    module = language_model(folder).eval()
    projection = MeanProjection(HIDDEN_DIM, 12)
    pooled = projection(module(heard))["sentence_embedding"]
    for index, count in enumerate(heard["frame_lengths"].tolist()):
        alone = {"frames": heard["frames"][index : index + 1, :count], "frame_lengths": torch.tensor([count])}
        assert torch.allclose(pooled[index], projection.projection(module(alone)["frames"][0].mean(dim=0)), atol=1e-5)


def test_terms_train_the_adapters_that_audio_runs_through(folder):
    owner = language_model(folder, lora_dropout=0.0)
    disturb(owner)
    text_tower = Qwen2TextTower.of(owner, 12, "Term: ")
    assert [name for name, _ in text_tower.named_parameters()] == ["projection.weight", "projection.bias"]
    text_tower(text_tower.preprocess(["in"]))["sentence_embedding"].sum().backward()
    assert all(owner.base.get_parameter(name).grad.any() for name in owner.trained)


def test_a_tower_without_a_language_model_says_so():
    text_tower = Qwen2TextTower(HIDDEN_DIM, 12, "")
    with pytest.raises(EarmarkError, match="share"):
        text_tower.preprocess(["in"])


def test_a_retriever_is_saved_and_loaded_with_one_language_model_for_both_routes(folder, tower, tmp_path):
    owner = language_model(folder)
    disturb(owner)
    projection: Module = MeanProjection(HIDDEN_DIM, 512)
    retriever = language_model_retriever(tower, owner, projection, Qwen2TextTower.of(owner, 512, "Term: ")).eval()
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    loaded = TermRetriever(str(tmp_path / "saved"), local_files_only=True, device="cpu").eval()
    [audio_route, text_route] = [list(route) for route in loaded[0].sub_modules.values()]
    assert text_route[0].owner is audio_route[1]
    for inputs in (clips(5_000, 16_161), ["the contraction of time", "in"]):
        vectors = loaded.encode(inputs)
        assert vectors.shape == (2, 512) and np.allclose(vectors, retriever.encode(inputs), atol=1e-6)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
