"""Audio in place of placeholders; what trains, in which type, and how it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from speech_llm_bases import make_bases, settings, talk, write_lines, write_noise
from torch import nn

from earmark.errors import AudioError, ConfigError
from earmark.speech_llm.audit import WrongParameters, audit, declared
from earmark.speech_llm.batches import Collator, Sample, read_clip, read_samples
from earmark.speech_llm.clip_encoder import ClipEncoder
from earmark.speech_llm.clip_features import WhisperClips
from earmark.speech_llm.labels import IGNORED, ChatLabels
from earmark.speech_llm.manual_loss import manual_loss
from earmark.speech_llm.model import WhisperQwen3, load_trained, save_trained, trained_weights
from earmark.speech_llm.projector import AudioProjector
from earmark.speech_llm.settings import parse_settings
from earmark.speech_llm.whisper_qwen3 import build_model, load_tokenizer

WHISPER = WhisperClips(mel_bins=80, max_states=1500, stack=5)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def chat(bases: tuple[str, str]) -> ChatLabels:
    return ChatLabels(load_tokenizer(bases[1]))


def build(bases: tuple[str, str], chat: ChatLabels, seed: int = 0, **changed: Any) -> WhisperQwen3:
    return build_model(settings(bases, Path("x"), Path("y"), **changed).model, chat.audio_id, seed)


def collator(chat: ChatLabels) -> Collator:
    return Collator(WHISPER, audio_id=chat.audio_id, pad_id=chat.end_id)


@pytest.fixture(scope="module")
def samples(chat: ChatLabels, bases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two conversations of unlike lengths."""
    folder = tmp_path_factory.mktemp("samples")
    rows = [
        talk(write_noise(folder / "a.wav", 24_000), "What?", "a distant farm in a wonderful truck"),
        talk(write_noise(folder / "b.wav", 9_000), "And what is it that is said here?", "a farm"),
    ]
    path = write_lines(folder / "train.jsonl", rows)
    data = settings(bases, path, folder).data
    return list(read_samples(path, folder / "data.json", chat, data, WHISPER))


def test_states_of_a_clip_do_not_depend_on_its_batch_mates(bases: tuple[str, str], chat: ChatLabels) -> None:
    encoder = build(bases, chat).whisper
    clips = [0.1 * np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (30_000, 5_000, 319)]
    together = encoder(*WHISPER.log_mel(clips))
    for row, clip in zip(together, clips, strict=True):
        alone = encoder(*WHISPER.log_mel([clip]))[0]
        assert alone.shape[0] == -(-clip.size // 320)
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-4)
        assert not row[len(alone) :].any()


def test_logits_do_not_depend_on_padding_of_either_side(
    bases: tuple[str, str], chat: ChatLabels, samples: list[Sample]
) -> None:
    model = build(bases, chat).eval()
    batch = collator(chat)(samples)
    del batch["labels"]
    left = dict(batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    for key in ("input_ids", "attention_mask"):
        rows = [row.roll(len(row) - length) for row, length in zip(batch[key], lengths, strict=True)]
        left[key] = torch.stack(rows)
    placed: list[torch.Tensor] = []
    model.qwen3.register_forward_pre_hook(lambda _, __, given: placed.append(given["position_ids"]), with_kwargs=True)
    with torch.no_grad():
        right, left_logits = model(**batch).logits, model(**left).logits
        for positions, inputs in zip(placed, (batch, left), strict=True):
            for number, length in enumerate(lengths):
                real = inputs["attention_mask"][number].bool()
                assert positions[number][real].tolist() == list(range(length))
        for number, length in enumerate(lengths):
            alone = collator(chat)([samples[number]])
            expected = model(**{key: value for key, value in alone.items() if key != "labels"}).logits[0]
            torch.testing.assert_close(right[number, :length], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(left_logits[number, -length:], expected, atol=1e-4, rtol=1e-4)


def test_audio_stands_where_the_placeholders_are_and_text_elsewhere(
    bases: tuple[str, str], chat: ChatLabels, samples: list[Sample]
) -> None:
    model = build(bases, chat).eval()
    batch = collator(chat)(samples)
    with torch.no_grad():
        embedded = model.embed(batch["input_ids"], batch["mel"], batch["states"])
        audio = model.projector(model.whisper(batch["mel"], batch["states"]))
        text = model.qwen3.get_input_embeddings()(batch["input_ids"].clamp(max=model.config.vocab_size - 1))
    is_audio = batch["input_ids"] == chat.audio_id
    torch.testing.assert_close(embedded[0][is_audio[0]], audio[0])
    torch.testing.assert_close(embedded[1][is_audio[1]], audio[1, : int(is_audio[1].sum())])
    torch.testing.assert_close(embedded[~is_audio], text[~is_audio])
    with pytest.raises(ValueError, match="do not match"):
        model.embed(batch["input_ids"].flip(0), batch["mel"], batch["states"])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projector_begins_with_scaled_xavier_weights(kind: str) -> None:
    torch.manual_seed(0)
    projector = AudioProjector(48, 64, kind=kind, stack=5, scale=0.1)
    bound = 0.1 * (6 / (240 + 64)) ** 0.5
    assert bound * 0.98 < projector.weight.abs().max() <= bound
    assert projector(torch.randn(2, 11, 48)).shape == (2, 3, 64)


def test_projector_computes_in_float32_within_a_half_precision_model(
    bases: tuple[str, str], chat: ChatLabels, samples: list[Sample]
) -> None:
    model = build(bases, chat, qwen3_dtype="bfloat16", train_qwen3_layers=1)
    types = {name: weight.dtype for name, weight in trained_weights(model).items()}
    assert set(types.values()) == {torch.float32}
    assert model.token_table.dtype == torch.bfloat16
    seen = []
    model.projector.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batch = collator(chat)(samples)
    with torch.autocast("cpu", torch.bfloat16):  # a caller's
        model(**batch)
    loss = model(**batch).loss
    loss.backward()
    assert seen == [torch.float32, torch.float32]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.token_table.grad is None


@pytest.mark.parametrize("items", [None, 7])
def test_manual_loss_is_the_models_own(
    bases: tuple[str, str], chat: ChatLabels, samples: list[Sample], items: int | None
) -> None:
    model = build(bases, chat).eval()
    batch = collator(chat)(samples)
    outputs = model(**batch, num_items_in_batch=items)
    assert (batch["labels"] != IGNORED).any()
    loss = manual_loss(outputs, batch["labels"], items)
    assert abs(loss.item() - outputs.loss.item()) < 1e-6 * max(1.0, outputs.loss.item())
    theirs = torch.autograd.grad(outputs.loss, model.projector.weight, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, model.projector.weight)[0], theirs)


def test_only_what_trains_is_saved_and_it_comes_back(bases: tuple[str, str], chat: ChatLabels, tmp_path: Path) -> None:
    model = build(bases, chat)
    path = tmp_path / "trained.safetensors"
    save_trained(model, path)
    saved = load_file(path)
    assert {name.split(".")[0] for name in saved} == {"projector", "qwen3"}
    assert all(".lora_" in name for name in saved if name.startswith("qwen3"))
    other = build(bases, chat, seed=1)
    load_trained(other, path)
    for name, weight in trained_weights(other).items():
        assert torch.equal(weight, saved[name])


def test_weights_that_do_not_fit_are_refused_before_any_is_loaded(
    bases: tuple[str, str], chat: ChatLabels, tmp_path: Path
) -> None:
    path = tmp_path / "trained.safetensors"
    save_trained(build(bases, chat), path)
    wider = build(bases, chat, lora_r=4)
    before = {name: weight.clone() for name, weight in trained_weights(wider).items()}
    with pytest.raises(ConfigError, match="12 weights are of another shape"):
        load_trained(wider, path)
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(wider).items())
    with pytest.raises(ConfigError, match="12 weights are unexpected"):
        load_trained(build(bases, chat, use_lora=False), path)
    with pytest.raises(ConfigError, match="weights are missing"):
        load_trained(build(bases, chat, lora_targets="q_proj,k_proj,v_proj"), path)
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trained(build(bases, chat), path)


def test_a_base_that_lacks_weights_is_refused(bases: tuple[str, str], chat: ChatLabels, tmp_path: Path) -> None:
    for source in Path(bases[0]).iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    (lost,) = (name for name in weights if name.endswith("encoder.layers.1.fc1.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 encoder weights, such as .*encoder\.layers\.1\.fc1\.weight"):
        build((str(tmp_path), bases[1]), chat)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"use_lora": False}, {"projector"}),
        ({}, {"projector", "lora"}),
        ({"train_qwen3_layers": 1}, {"projector", "lora", "qwen3"}),
        ({"freeze_whisper": False, "use_lora": False, "train_qwen3_layers": 3}, {"projector", "whisper", "qwen3"}),
    ],
)
def test_exactly_what_the_settings_say_trains(
    bases: tuple[str, str], chat: ChatLabels, changed: dict[str, Any], parts: set[str]
) -> None:
    model = build(bases, chat, **changed)
    chosen = settings(bases, Path("x"), Path("y"), **changed).model
    report = audit(model, declared(model, chosen))
    assert {name for name, part in report["parts"].items() if part["trainable"]} == parts
    whole = [name for name in trained_weights(model) if name.startswith("qwen3") and ".lora_" not in name]
    layers = {int(name.split(".")[3]) for name in whole}
    assert layers == set(range(3 - changed.get("train_qwen3_layers", 0), 3))
    adapted = {int(name.split(".")[3]) for name in trained_weights(model) if ".lora_" in name}
    assert not adapted & layers

    weight = model.qwen3.model.embed_tokens.weight
    weight.requires_grad_(True)
    with pytest.raises(WrongParameters, match="must stay as it is"):
        audit(model, declared(model, chosen))
    weight.requires_grad_(False)
    model.projector.weight.requires_grad_(False)
    with pytest.raises(WrongParameters, match=r"projector\.layers\.0\.weight must train, but is frozen"):
        audit(model, declared(model, chosen))


def test_adamw_turns_float16_weights_to_nan_where_the_gradient_is_zero() -> None:
    """lora_A has no gradient in the first step, as lora_B is zero; epsilon is zero in float16."""

    def after_a_step(dtype: torch.dtype) -> torch.Tensor:
        lora_a, lora_b = nn.Parameter(torch.ones(4, dtype=dtype)), nn.Parameter(torch.zeros(4, dtype=dtype))
        (lora_a * lora_b).sum().backward()
        torch.optim.AdamW([lora_a, lora_b], lr=1e-3).step()
        return lora_a.detach()

    assert torch.tensor(1e-8, dtype=torch.float16) == 0
    assert after_a_step(torch.float16).isnan().all()
    assert after_a_step(torch.float32).isfinite().all()


@pytest.mark.parametrize("changed", [{"lora_fp32": False}, {"projector_fp32": False}])
def test_float16_weights_that_would_train_are_refused_with_the_reason(
    bases: tuple[str, str], chat: ChatLabels, changed: dict[str, Any]
) -> None:
    model = build(bases, chat, qwen3_dtype="float16", **changed)
    chosen = settings(bases, Path("x"), Path("y"), **changed).model
    with pytest.raises(WrongParameters, match=r"float16: AdamW's epsilon of 1e-8 is zero in float16"):
        audit(model, declared(model, chosen))
    whole = build(bases, chat, qwen3_dtype="float16")
    audit(whole, declared(whole, settings(bases, Path("x"), Path("y")).model))


def test_lora_init_scale_scales_lora_a_alone(bases: tuple[str, str], chat: ChatLabels) -> None:
    plain, faint = trained_weights(build(bases, chat)), trained_weights(build(bases, chat, lora_init_scale=0.01))
    for name, weight in plain.items():
        factor = 0.01 if ".lora_A." in name else 1.0
        torch.testing.assert_close(faint[name], weight * factor)
    assert any(".lora_A." in name and weight.any() for name, weight in plain.items())


def test_the_clamp_bounds_what_enters_the_first_q_proj_only(
    bases: tuple[str, str], chat: ChatLabels, samples: list[Sample]
) -> None:
    model = build(bases, chat, clamp_q_proj_input=0.25, use_lora=False)
    entered: dict[str, float] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: entered.update({name: inputs[0].abs().max().item()})

    for layer in (0, 1):
        model.qwen3.model.layers[layer].self_attn.q_proj.register_forward_hook(note(f"q{layer}"))
        model.qwen3.model.layers[layer].self_attn.k_proj.register_forward_hook(note(f"k{layer}"))
    model(**collator(chat)(samples))
    assert entered["q0"] == 0.25
    assert min(entered["k0"], entered["q1"], entered["k1"]) > 0.25


def test_whisper_kept_on_the_cpu_ignores_moves_and_training_mode(bases: tuple[str, str], chat: ChatLabels) -> None:
    model = build(bases, chat, whisper_cpu=True)
    model.to(device="meta", dtype=torch.float64)
    assert {p.device.type for p in model.whisper.parameters()} == {"cpu"}
    assert {p.dtype for p in model.whisper.parameters()} == {torch.float32}
    assert {p.device.type for p in model.projector.parameters()} == {"meta"}
    assert not model.train().whisper.encoder.training
    assert build(bases, chat, freeze_whisper=False).train().whisper.encoder.training


def test_a_clip_that_is_too_long_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(481_000, np.float32), 16_000)
    with pytest.raises(AudioError, match=r"a\.wav: a clip of 30\.1 s is longer"):
        read_clip(path, WHISPER)


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_quantisation_without_bitsandbytes_or_a_gpu_is_refused(
    bases: tuple[str, str], chat: ChatLabels, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ConfigError, match=f"{flag} needs the package bitsandbytes"):
        build(bases, chat, **{flag: True})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: find("json") if name == "bitsandbytes" else None)
    with pytest.raises(ConfigError, match=f"{flag} needs a CUDA GPU"):
        build(bases, chat, **{flag: True})


@pytest.mark.parametrize(
    ("flags", "value"), [(["--use_lora"], True), (["--use_lora", "true"], True), (["--use_lora", "false"], False)]
)
def test_both_spellings_of_a_flag_are_understood(flags: list[str], value: bool) -> None:
    given = ["--whisper_model=w", "--qwen3_model=q", "--train_json=t", "--output_dir=o", "--no_freeze_whisper"]
    parsed = parse_settings([*given, "--seed", "3", *flags])
    assert parsed.model.use_lora is value
    assert not parsed.model.freeze_whisper
    assert parsed.train.seed == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"whisper_cpu": True, "freeze_whisper": False}, "set freeze_whisper"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"load_in_4bit": True, "use_lora": False}, "quantised weights cannot train"),
        ({"grad_norm_lr_reaction": True}, "set grad_norm_ema_decay"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"max_rejected_fraction": 1.5}, "max_rejected_fraction is 1.5"),
        ({"save_total_limit": 1}, "save_total_limit is 1"),
        ({"resume_tolerance": float("nan")}, "resume_tolerance is nan"),
        ({"freeze_projector_steps": 2, "use_lora": False}, "leaves nothing that trains"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(("w", "q"), Path("x"), Path("y"), **changed)


def test_more_trained_layers_than_there_are_is_refused(bases: tuple[str, str], chat: ChatLabels) -> None:
    with pytest.raises(ConfigError, match=r"train_qwen3_layers is 4; .* has 3"):
        build(bases, chat, train_qwen3_layers=4, use_lora=False)
    with pytest.raises(ConfigError, match="leaves no layer for LoRA"):
        build(bases, chat, train_qwen3_layers=3)


@pytest.mark.parametrize("targets", ["nothing", "q_proj,vproj", "q_proj,lm_head", "embed_tokens", "layernorm", " , "])
def test_a_target_of_lora_that_is_no_linear_layer_is_refused(
    bases: tuple[str, str], chat: ChatLabels, targets: str
) -> None:
    with pytest.raises(ConfigError, match=f"lora_targets '{targets}'"):
        build(bases, chat, lora_targets=targets)


def test_an_adapter_that_is_not_in_the_model_is_missed(bases: tuple[str, str], chat: ChatLabels) -> None:
    model = build(bases, chat)
    chosen = settings(bases, Path("x"), Path("y"), lora_targets="q_proj,v_proj,self_attn.o_proj").model
    with pytest.raises(WrongParameters, match=r"o_proj\.lora_A\.default\.weight must train, but is not in the model"):
        audit(model, declared(model, chosen))


def test_encoder_states_carry_no_gradient_where_whisper_is_frozen(bases: tuple[str, str], chat: ChatLabels) -> None:
    clip = [np.ones(3_200, np.float32)]
    frozen: ClipEncoder = build(bases, chat).whisper
    assert not frozen(*WHISPER.log_mel(clip)).requires_grad
    trained = build(bases, chat, freeze_whisper=False).whisper
    assert trained(*WHISPER.log_mel(clip)).requires_grad
    with torch.no_grad():
        assert not trained(*WHISPER.log_mel(clip)).requires_grad
