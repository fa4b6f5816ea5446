"""Qwen2-Audio as an architecture of the trainer: heard as the stock model hears, and trained where it was told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from speech_llm_bases import (
    demo_conversations,
    make_bases,
    make_qwen2_audio,
    metrics,
    settings,
    talk,
    write_lines,
    write_noise,
)
from torch import nn
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
    modeling_utils,
)

from earmark.audio import read_audio
from earmark.errors import ConfigError, InputError
from earmark.speech_llm.adapters import save_adapter
from earmark.speech_llm.answers import answer_split
from earmark.speech_llm.audit import WrongParameters, audit, checkpoint_size, declared
from earmark.speech_llm.batches import Collator, Sample, read_samples
from earmark.speech_llm.conversations import AUDIO, Turn, UnusableLine
from earmark.speech_llm.labels import IGNORED, ChatLabels
from earmark.speech_llm.noise import STEADY_DB, check_speech, waver_db
from earmark.speech_llm.qwen2_audio import CHAT_TEMPLATE, Qwen2Audio, build_model, load_chat, prepare
from earmark.speech_llm.section import as_flags
from earmark.speech_llm.settings import ModelSettings
from earmark.speech_llm.train import finetune, load
from earmark.speech_llm.trainer import SpeechTrainer

ANSWERS = [
    "a farm",
    "a distant farm",
    "one truck",
    "the blanket",
    "they drove",
    "in a truck",
    "over there",
    "a breaker",
]
CONFIG_7B = {
    "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    "text_config": {
        "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156032,
    },
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_qwen2_audio(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chat(base: str) -> ChatLabels:
    return load_chat(base)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight conversations about noises of unlike lengths."""
    folder = tmp_path_factory.mktemp("noise")
    rows = [
        talk(write_noise(folder / f"{number}.wav", 4_000 + 2_000 * number, number), "What is said?", answer)
        for number, answer in enumerate(ANSWERS)
    ]
    return write_lines(folder / "train.jsonl", rows)


def model_settings(base: str, **changed: Any) -> ModelSettings:
    return settings(base, Path("x"), Path("y"), **changed).model


def batch_of(model: Qwen2Audio, chat: ChatLabels, lines: Path, count: int, scratch: Path) -> dict[str, torch.Tensor]:
    data = settings("base", lines, scratch).data
    samples = list(read_samples(lines, scratch / "data.json", chat, data, model.clips))
    return Collator(model.clips, audio_id=chat.audio_id, pad_id=chat.end_id)(samples[:count])


def stock(base: str) -> Qwen2AudioForConditionalGeneration:
    return Qwen2AudioForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()


def processor(chat: ChatLabels) -> Qwen2AudioProcessor:
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), chat.tokenizer)


def as_published(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Turns as the stock processor takes them: audio and text as parts of a user's turn."""
    written = []
    for turn in turns:
        before, audio, text = turn.text.partition(AUDIO)
        parts = [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": text.lstrip(" ")}]
        written.append({"role": turn.role, "content": parts if audio else before})
    return written


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", f"{AUDIO} What is said?"), Turn("assistant", "a farm")),
        (Turn("system", "Be short."), Turn("user", f"{AUDIO}What?"), Turn("assistant", "a farm")),
        (
            Turn("user", f"{AUDIO}What?"), Turn("assistant", "a farm"),
            Turn("user", "Where?"), Turn("assistant", "over there"),
        ),
    ],
)  # fmt: skip
def test_tokens_are_those_of_the_published_template_and_labels_those_of_the_answers(
    chat: ChatLabels, turns: tuple[Turn, ...]
) -> None:
    published = processor(chat).default_chat_template
    text = chat.tokenizer.apply_chat_template(as_published(turns), chat_template=published, tokenize=False)
    tokens = chat(turns)
    assert tokens.ids.tolist() == chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    labelled = chat.tokenizer.decode(tokens.ids[tokens.labels != IGNORED])
    assert labelled == "".join(f"{turn.text}<|im_end|>" for turn in turns if turn.role == "assistant")
    asked = chat.tokenizer.apply_chat_template(
        as_published(turns[:-1]), chat_template=published, tokenize=False, add_generation_prompt=True
    )
    assert chat.prompt_ids(turns[:-1]).tolist() == chat.tokenizer(asked, add_special_tokens=False)["input_ids"]


def test_a_folder_without_a_template_gets_the_published_one_and_another_tokenizer_is_refused(
    base: str, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    assert load_chat(str(bare)).tokenizer.chat_template == CHAT_TEMPLATE
    (bare / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE.replace("helpful", "kind")}))
    assert "a kind assistant" in load_chat(str(bare)).tokenizer.chat_template  # the processor's, where there is one
    qwen3 = make_bases(tmp_path / "bases")[1]
    with pytest.raises(ConfigError, match=r"the tokenizer has no <\|AUDIO\|>"):
        load_chat(qwen3)


def test_a_turn_that_holds_an_audio_token_is_refused(chat: ChatLabels) -> None:
    with pytest.raises(UnusableLine, match=r"<\|AUDIO\|>"):
        chat((Turn("user", f"{AUDIO}What is <|AUDIO|>?"), Turn("assistant", "a farm")))


@pytest.mark.parametrize("changed", [{}, {"method": "none"}, {"method": "projector"}])
def test_logits_are_those_of_the_stock_model_on_what_its_processor_makes_of_clip_and_text(
    base: str, chat: ChatLabels, noise: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    changed |= {"i_know_this_overwrites_alignment": changed.get("method") == "projector"}
    model = build_model(model_settings(base, **changed), chat.audio_id, seed=0).eval()
    count = 3
    batch = batch_of(model, chat, noise, count, tmp_path)
    with torch.no_grad():
        ours = model(**batch)
    rows = [json.loads(line)["conversations"] for line in noise.read_text().splitlines()[:count]]
    texts = [
        chat.tokenizer.apply_chat_template(
            as_published((Turn("user", f"{AUDIO}What is said?"), Turn("assistant", row[1]["value"]))),
            chat_template=processor(chat).default_chat_template,
            tokenize=False,
        )
        for row in rows
    ]
    clips = [read_audio(noise.parent / f"{number}.wav") for number in range(count)]
    inputs = processor(chat)(text=texts, audio=clips, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert inputs["input_features"].shape[-1] == 3000  # 30 s, where ours are less than one
    assert batch["mel"].shape[-1] < 60
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        theirs = stock(base)(**inputs)
    assert torch.equal(batch["input_ids"][real], inputs["input_ids"][inputs["attention_mask"].bool()])
    expected = theirs.logits[inputs["attention_mask"].bool()]
    torch.testing.assert_close(ours.logits[real], expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_batches_of_one_step_weigh_by_their_labels(base: str, chat: ChatLabels, noise: Path, tmp_path: Path) -> None:
    model = build_model(model_settings(base), chat.audio_id, seed=0).eval()
    batch = batch_of(model, chat, noise, 4, tmp_path)
    items = int((batch["labels"][:, 1:] != IGNORED).sum())
    with torch.no_grad():
        whole = model(**batch).loss
        parts = [
            model(**{name: rows[half] for name, rows in batch.items()}, num_items_in_batch=items).loss
            for half in (slice(0, 1), slice(1, 4))
        ]
    torch.testing.assert_close(sum(parts), whole)


def seven_billion(**changed: Any) -> tuple[Qwen2Audio, ModelSettings]:
    chosen = model_settings("Qwen/Qwen2-Audio-7B-Instruct", **changed)
    with torch.device("meta"):
        return prepare(Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(**CONFIG_7B)), chosen, 151646, 0), chosen


def test_the_real_configuration_trains_what_it_declares_to_the_last_parameter_and_byte(tmp_path: Path) -> None:
    model, chosen = seven_billion()
    report = audit(model, declared(model, chosen))
    parts = report["parts"]
    assert {name: part["trainable"] for name, part in parts.items()} == {
        "audio_tower": 0, "projector": 0, "language_model": 0, "lora": 4_194_304,
    }  # fmt: skip
    assert {name: part["parameters"] for name, part in parts.items() if name != "lora"} == {
        "audio_tower": 636_968_960, "projector": 5_246_976, "language_model": 7_754_878_976,
    }  # fmt: skip
    assert report["share"] == pytest.approx(0.000499, abs=1e-6)
    assert (parts["audio_tower"]["state"], parts["lora"]["state"]) == ("frozen", "trained")
    for module in model.modules():
        for side in ("lora_A", "lora_B"):
            if hasattr(module, side):
                layer = getattr(module, side)["default"]
                layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape))
    assert isinstance(model.qwen2_audio, PeftModel)
    size = checkpoint_size(save_adapter(model.qwen2_audio, tmp_path), report)
    header = int.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert size["files"]["adapter_model.safetensors"] == 4 * 4_194_304 + 8 + header
    assert {path.name for path in tmp_path.iterdir()} == set(size["files"])
    with pytest.raises(WrongParameters, match="16777216 bytes of weights, but what trains are 8"):
        checkpoint_size([tmp_path / "adapter_model.safetensors"], {"trainable_bytes": 8})


def test_adapters_that_reach_into_the_audio_tower_are_found(base: str) -> None:
    chosen = model_settings(base)
    model = get_peft_model(stock(base), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    wrong = Qwen2Audio(model, audio_id=0)
    with pytest.raises(WrongParameters, match=r"audio_tower.* must stay as it is, but would train"):
        audit(wrong, declared(wrong, chosen))


def test_the_projector_alone_trains_where_it_was_declared_and_nothing_where_nothing() -> None:
    model, chosen = seven_billion(method="projector", i_know_this_overwrites_alignment=True)
    report = audit(model, declared(model, chosen))
    assert report["trainable"] == report["parts"]["projector"]["trainable"] == 5_246_976
    model, chosen = seven_billion(method="none")
    assert audit(model, declared(model, chosen))["trainable"] == 0


def test_a_tiny_model_learns_real_utterances_by_heart_with_adapters_alone(
    base: str, demo: Path, tmp_path: Path
) -> None:
    talks = demo_conversations(demo, tmp_path / "audio", 20)
    output = tmp_path / "model"
    layers = "q_proj,v_proj,k_proj,o_proj,up_proj,gate_proj,down_proj"
    finetune(
        settings(
            base, talks, output, lora_dropout=0.0, lora_targets=layers, lora_r=16, learning_rate=1e-2,
            num_train_epochs=24.0, per_device_train_batch_size=5, save_steps=999, logging_steps=4,
        )
    )  # fmt: skip
    losses = [entry["loss"] for entry in metrics(output) if "loss" in entry]
    assert losses[0] > 5
    assert losses[-1] < 0.1
    # Twenty sentences can be learned without listening, but not which of them goes with which audio.
    answer_split(
        output, talks, tmp_path / "answers.parquet", wavs=[], max_new_tokens=40, batch_size=10, threads=1,
        max_rejected_fraction=0.0,
    )  # fmt: skip
    said = {row["chunk_id"]: row["text"] for row in pq.read_table(tmp_path / "answers.parquet").to_pylist()}
    rows = [json.loads(line)["conversations"] for line in talks.read_text().splitlines()]
    right = [said[Path(row[0]["value"].split("</audio>")[0]).stem] == row[1]["value"] for row in rows]
    assert sum(right) >= 18
    report = json.loads((output / "audit.json").read_text())
    assert {name for name, part in report["parts"].items() if part["trainable"]} == {"lora"}
    saved = output / "adapter_model.safetensors"
    assert sum(weight.numel() for weight in load_file(saved).values()) == report["trainable"]
    assert report["checkpoint"]["files"]["adapter_model.safetensors"] == saved.stat().st_size
    assert not (output / "trained.safetensors").exists()


@pytest.fixture(scope="module")
def adapters(base: str, noise: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained adapters of one base."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed in (("first", 1), ("second", 2)):
        finetune(settings(base, noise, folder / name, seed=seed, learning_rate=1e-2, save_steps=99))
    return [folder / "first", folder / "second"]


def test_adapters_stand_side_by_side_on_one_base_and_leave_it_as_it_was(
    base: str, chat: ChatLabels, noise: Path, adapters: list[Path], tmp_path: Path
) -> None:
    plain = stock(base)
    hearing = Qwen2Audio(plain, chat.audio_id)
    batch = batch_of(hearing, chat, noise, 3, tmp_path)
    del batch["labels"]

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return Qwen2Audio(model, chat.audio_id).eval()(**batch).logits

    untouched = logits(plain)
    both = PeftModel.from_pretrained(plain, adapters[0], adapter_name="first")
    both.load_adapter(adapters[1], adapter_name="second")
    heard = {}
    for name, folder in (("first", adapters[0]), ("second", adapters[1]), ("first", adapters[0])):
        both.set_adapter(name)
        heard[name] = logits(both)
        with torch.no_grad():
            assert torch.equal(heard[name], load(folder)[0](**batch).logits)
    assert not torch.equal(heard["first"], heard["second"])
    assert not torch.equal(heard["first"], untouched)
    with both.disable_adapter():
        assert torch.equal(logits(both), untouched)
    assert torch.equal(logits(both.unload()), untouched)
    assert json.loads((adapters[0] / "adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_adapters_trained_with_the_clamp_are_saved_with_a_warning_that_peft_has_none(
    base: str, noise: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finetune(settings(base, noise, tmp_path, clamp_q_proj_input=3.0))
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"clamp_q_proj_input is 3, and is no part of {tmp_path / 'adapter_model.safetensors'}")


def test_an_adapter_of_another_shape_is_refused(adapters: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(adapters[0], folder)
    told = json.loads((folder / "speech_llm.json").read_text())
    told["model"]["lora_r"] = 4
    (folder / "speech_llm.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="are of another shape"):
        load(folder)


def test_a_killed_training_ends_with_the_adapter_of_an_undisturbed_one(
    base: str, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def chosen(name: str) -> Any:
        return settings(
            base, noise, tmp_path / name, num_train_epochs=2.0, save_steps=2, lora_dropout=0.2, learning_rate=1e-2,
            lora_grad_clip=0.5, logging_steps=3, gradient_checkpointing=True,
        )  # fmt: skip

    finetune(chosen("undisturbed"))
    pid = os.fork()
    if not pid:
        calls, real = 0, SpeechTrainer.training_step

        def dying(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return os.kill(os.getpid(), signal.SIGKILL) if calls == 6 else real(*args, **kwargs)

        SpeechTrainer.training_step = dying  # type: ignore[method-assign, assignment]
        finetune(chosen("killed"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    (checkpoint,) = (tmp_path / "killed").glob("checkpoints/*/checkpoint-4")
    assert not list(checkpoint.glob("*model.bin")) + list(checkpoint.glob("model*"))
    with caplog.at_level("INFO"):
        finetune(chosen("killed"))
    assert "a killed training of these settings goes on from" in caplog.text
    expected, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("undisturbed", "killed"))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "undisturbed")


def test_two_processes_of_the_command_take_the_steps_of_one_with_the_joint_batch(
    base: str, noise: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"lora_dropout": 0.0, "learning_rate": 1e-3, "save_steps": 99, "valid_json": str(noise)}
    finetune(settings(base, noise, tmp_path / "one", per_device_train_batch_size=4, **shared))
    # By address, not by the machine's name, which need not resolve.
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2", "-m"]
    chosen = settings(base, noise, tmp_path / "two", per_device_train_batch_size=2, **shared)
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "earmark.speech_llm", *as_flags(chosen)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-4)
    losses = [[e.get("loss", e.get("eval_loss")) for e in metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2_audio", "whisper_qwen3"])
def test_checkpointed_gradients_are_the_same(
    architecture: str, base: str, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = base if architecture == "qwen2_audio" else make_bases(tmp_path / "bases")
    trained: dict[str, Any] = {} if architecture == "qwen2_audio" else {"freeze_whisper": False}
    calls, real = [], modeling_utils.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    weights, counts = [], []
    for on in (False, True):
        output = tmp_path / str(on)
        finetune(settings(bases, noise, output, gradient_checkpointing=on, lora_dropout=0.1, save_steps=99, **trained))
        weights.append(load_file(next(output.glob("*.safetensors"))))
        counts.append(len(calls))
    assert counts[0] == 0 < counts[1]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def thousand(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand conversations about twenty demo utterances."""
    folder = tmp_path_factory.mktemp("thousand")
    few = demo_conversations(demo, folder, 20).read_text().splitlines()
    short = [json.loads(line) for line in few]
    for number, row in enumerate(short):
        clip = Path(row["conversations"][0]["value"].removeprefix("<audio>").partition("</audio>")[0])
        cut = folder / f"cut{number}.wav"
        soundfile.write(cut, read_audio(clip)[8_000:24_000], 16_000)
        row["conversations"][0]["value"] = f"<audio>{cut}</audio>What?"
        row["conversations"][1]["value"] = "yes"
    return write_lines(folder / "thousand.jsonl", short * 50)


def test_training_the_projector_moves_it_alone_and_says_how_far(base: str, thousand: Path, tmp_path: Path) -> None:
    chosen = settings(
        base, thousand, tmp_path, method="projector", i_know_this_overwrites_alignment=True, check_audio=False,
        per_device_train_batch_size=125, learning_rate=1e-3, save_steps=99,
    )  # fmt: skip
    finetune(chosen)
    prefix = "qwen2_audio.model.multi_modal_projector.linear."
    saved = load_file(tmp_path / "trained.safetensors")
    assert saved.keys() == {f"{prefix}weight", f"{prefix}bias"}
    before = load_file(Path(base) / "model.safetensors")
    then, now = (
        weights[next(name for name in weights if name.endswith("multi_modal_projector.linear.weight"))].double()
        for weights in (before, saved)
    )
    moved = json.loads((tmp_path / "projector_movement.json").read_text())
    told = moved["weights"]["linear.weight"]
    assert told["relative_change"] == pytest.approx(((now - then).norm() / then.norm()).item(), rel=1e-6)
    assert told["cosine"] == pytest.approx(torch.cosine_similarity(then.flatten(), now.flatten(), 0).item(), abs=1e-9)
    assert 0 < moved["relative_change"] < 0.5
    # All else is the base's.
    model, plain = load(tmp_path)[0], dict(stock(base).named_parameters())
    others = {name: weight for name, weight in model.named_parameters() if not name.startswith(prefix)}
    assert len(others) == len(plain) - 2
    assert all(torch.equal(weight, plain[name.removeprefix("qwen2_audio.")]) for name, weight in others.items())


def test_the_projector_is_not_trained_on_little_or_on_noise(
    base: str, thousand: Path, noise: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"method": "projector", "i_know_this_overwrites_alignment": True, "check_audio": False}
    few = tmp_path / "few.jsonl"
    few.write_text("".join(thousand.read_text().splitlines(keepends=True)[:999]))
    with pytest.raises(InputError, match=r"999 conversations; .* at least 1000"):
        finetune(settings(base, few, tmp_path / "few", **shared))
    loud = tmp_path / "loud.jsonl"
    loud.write_text(noise.read_text() * 125)
    with pytest.raises(InputError, match="200 of 200 clips sound like noise"):
        finetune(settings(base, loud, tmp_path / "loud", **shared))
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_noise_of_any_colour_hum_and_silence_are_told_from_speech(demo: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def coloured(slope: float, samples: int) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        spectrum /= np.maximum(np.arange(spectrum.size), 1) ** (slope / 2)
        return np.fft.irfft(spectrum, samples)

    seconds = np.arange(24_000) / 16_000
    unspoken = [coloured(slope, samples) for slope in (0, 1, 2) for samples in (8_000, 24_000, 80_000)]
    unspoken += [0.3 * np.sin(2 * np.pi * 150 * seconds) + 0.01 * coloured(0, 24_000), np.zeros(24_000), np.zeros(9)]
    silence = np.zeros(4_000)
    for slope in (0, 1, 2):
        steady = coloured(slope, 24_000)
        unspoken += [
            np.concatenate([silence, steady]),
            steady * np.linspace(1, 0, steady.size),
            steady * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * seconds)),
        ]
        unspoken[-3:] = [np.round(0.5 * clip / np.abs(clip).max() * 32767) / 32768 for clip in unspoken[-3:]]
    wavers = [waver_db(clip.astype(np.float32)) for clip in unspoken]
    assert max(wavers) < STEADY_DB, wavers
    lines = demo_conversations(demo, tmp_path, 40).read_text().splitlines()
    paths = [
        Path(json.loads(line)["conversations"][0]["value"].split("</audio>")[0][len("<audio>") :]) for line in lines
    ]
    for path in paths:
        clip = read_audio(path)
        middle = clip.size // 2
        loud = clip[max(0, middle - 8_000) : middle + 8_000]  # a second, as chunks have
        noisy = loud + rng.standard_normal(loud.size) * np.sqrt(np.mean(loud**2)) * 10 ** (-10 / 20)  # 10 dB below it
        assert min(waver_db(loud), waver_db(noisy.astype(np.float32))) > STEADY_DB, path
    check_speech(paths, tmp_path)

    # Of noise at half the rate not every clip is told, but most are, and they are told together.
    for number in range(20):
        clip = soxr.resample(coloured(number % 3, 12_000), 8_000, 16_000)
        soundfile.write(tmp_path / f"half{number}.wav", 0.5 * clip / np.abs(clip).max(), 16_000, subtype="PCM_16")
    with pytest.raises(InputError, match="of 20 clips sound like noise"):
        check_speech([tmp_path / f"half{number}.wav" for number in range(20)], tmp_path)


def test_a_model_as_it_is_writes_no_weights_but_its_loss_and_answers(
    base: str, chat: ChatLabels, noise: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "model"
    with caplog.at_level("INFO", "earmark"):
        finetune(settings(base, noise, output, method="none", valid_json=str(noise)))
    assert caplog.messages[-1] == f"{output}: evaluated as it is; nothing was trained"
    assert not list(output.rglob("*.safetensors"))
    assert not list(output.rglob("checkpoint-*"))
    (line,) = metrics(output)
    plain = Qwen2Audio(stock(base), chat.audio_id)
    with torch.no_grad():
        loss = plain(**batch_of(plain, chat, noise, 8, tmp_path)).loss.item()
    assert (line["step"], line["eval_loss"]) == (0, pytest.approx(loss, abs=1e-4))
    report = json.loads((output / "audit.json").read_text())
    assert report["trainable"] == report["checkpoint"]["bytes"] == 0

    # The likeliest words, though the base's own settings are to sample and to avoid repetition.
    answer_split(
        output, noise, tmp_path / "answers.parquet", wavs=[], max_new_tokens=6, batch_size=4, threads=1,
        max_rejected_fraction=0.0,
    )  # fmt: skip
    said = {row["chunk_id"]: row["text"] for row in pq.read_table(tmp_path / "answers.parquet").to_pylist()}
    collate = Collator(plain.clips, audio_id=chat.audio_id, pad_id=chat.end_id)
    for number in (0, 5):
        ids = chat.prompt_ids((Turn("user", f"{AUDIO}What is said?"),))
        begun = len(ids)
        for _ in range(6):
            tokens = chat((Turn("user", f"{AUDIO}What is said?"), Turn("assistant", "x")))
            one = Sample("", noise.parent / f"{number}.wav", replace(tokens, ids=ids, labels=ids, borders=None))
            batch = collate([one])
            del batch["labels"]
            with torch.no_grad():
                ids = np.append(ids, plain(**batch).logits[0, -1].argmax().item()).astype(np.int32)
        assert said[str(number)] == chat.tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"method": "projector"}, "set i_know_this_overwrites_alignment"),
        ({"i_know_this_overwrites_alignment": True}, "the projector does not train; leave it out"),
        ({"method": "none", "learning_rate": 1.0}, "learning_rate is 1.0, but method none trains nothing"),
        ({"method": "none", "lora_r": 4}, "lora_r is 4, but method none trains no adapters"),
        ({"whisper_model": "w"}, "whisper_model is w, but it is a flag of architecture whisper_qwen3"),
        ({"use_lora": True}, "use_lora is True, but it is a flag of architecture whisper_qwen3"),
        ({"projector_stack": 2}, "projector_stack is 2, but it is a flag of architecture whisper_qwen3"),
        ({"projector_fp32": False}, "the projector does not train"),
        ({"freeze_projector_steps": 2}, "in qwen2_audio nothing trains beside the projector"),
        ({"device_map": "auto"}, "qwen2_audio runs on one device"),
        (
            {"method": "projector", "i_know_this_overwrites_alignment": True, "lora_grad_clip": 1.0},
            "lora_grad_clip is 1.0, but method projector trains no adapters",
        ),
        ({"qwen2_audio_model": None}, "qwen2_audio_model is not set"),
    ],
)
def test_flags_that_say_nothing_about_the_training_are_refused_with_the_reason(
    changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        settings("base", Path("x"), Path("y"), **changed)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"method": "none"}, "method is none, but it is a flag of architecture qwen2_audio"),
        ({"use_lora": False, "lora_r": 4}, "lora_r is 4, but use_lora is not set"),
        ({"qwen3_model": None}, "qwen3_model is not set"),
    ],
)
def test_so_are_those_that_say_nothing_about_whisper_with_qwen3(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(("w", "q"), Path("x"), Path("y"), **changed)


def test_a_base_that_cannot_be_used_is_told_in_a_sentence(
    base: str, chat: ChatLabels, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="a model of type 'qwen3', not qwen2_audio"):
        build_model(model_settings(make_bases(tmp_path / "bases")[1]), chat.audio_id, 0)
    with pytest.raises(ConfigError, match=r"lora_targets 'q_proj,fc1': fc1 is no linear layer"):  # the tower has it
        build_model(model_settings(base, lora_targets="q_proj,fc1"), chat.audio_id, 0)
    with pytest.raises(ConfigError, match="qwen2_audio_dtype is float16"):
        finetune(settings(base, noise, tmp_path / "half", qwen2_audio_dtype="float16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: True)
    with pytest.raises(ConfigError, match="load_in_4bit needs a CUDA GPU"):
        build_model(model_settings(base, load_in_4bit=True), chat.audio_id, 0)


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}', '{"chat_template": null}'])
def test_a_broken_template_of_the_processor_is_told_with_its_file(base: str, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "chat_template.json").write_text(text)
    with pytest.raises(ConfigError, match=r"base/chat_template\.json: .*copy or download the model again"):
        load_chat(str(folder))


def test_packed_weights_are_counted_as_what_they_stand_for(base: str, chat: ChatLabels) -> None:
    class Params4bit(nn.Parameter):
        """As bitsandbytes has it: two weights in a byte, their shape in `quant_state`."""

    chosen = model_settings(base)
    model = build_model(chosen, chat.audio_id, 0)
    plain = audit(model, declared(model, chosen))
    for module in model.speaker.model.language_model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            shape = module.weight.shape
            packed = Params4bit(torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
            packed.quant_state = SimpleNamespace(shape=shape)  # type: ignore[attr-defined]
            module.weight = packed
    counted = audit(model, declared(model, chosen))
    assert "uint8" in counted["parts"]["language_model"]["dtypes"]
    assert (counted["parameters"], counted["share"]) == (plain["parameters"], plain["share"])
    assert counted["parts"]["language_model"]["parameters"] == plain["parts"]["language_model"]["parameters"]


def test_adapters_of_a_half_precision_base_are_float32_and_the_clamp_is_the_language_models(
    base: str, chat: ChatLabels, noise: Path, tmp_path: Path
) -> None:
    chosen = model_settings(base, qwen2_audio_dtype="bfloat16", clamp_q_proj_input=0.5, lora_init_scale=0.5)
    model = build_model(chosen, chat.audio_id, 0)
    report = audit(model, declared(model, chosen))
    assert report["parts"]["lora"]["dtypes"] == ["float32"]
    assert report["parts"]["audio_tower"]["dtypes"] == report["parts"]["language_model"]["dtypes"] == ["bfloat16"]
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert [name.partition("language_model.")[2] for name in hooked] == ["layers.0.self_attn.q_proj"]
    loss = model(**batch_of(model, chat, noise, 2, tmp_path)).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    unscaled = build_model(model_settings(base, qwen2_audio_dtype="bfloat16"), chat.audio_id, 0)
    name = next(name for name, _ in model.named_parameters() if ".lora_A." in name)
    torch.testing.assert_close(2 * model.get_parameter(name), unscaled.get_parameter(name))
