"""Whole trainings of tiny models: they learn real speech, survive a kill, divide over processes, and stop when ill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from speech_llm_bases import (
    demo_conversations,
    make_bases,
    metrics,
    noise_conversations,
    settings,
    talk,
    write_lines,
    write_noise,
)
from transformers import Trainer, TrainerState

from earmark import cli
from earmark.errors import ConfigError
from earmark.speech_llm.batches import Sample, read_samples
from earmark.speech_llm.checkpoints import CheckpointChanged, check_loss, last_checkpoint, training_key
from earmark.speech_llm.conversations import AUDIO, Turn
from earmark.speech_llm.labels import Tokens
from earmark.speech_llm.nan_monitor import TrainingDiverged
from earmark.speech_llm.settings import DataSettings, Settings
from earmark.speech_llm.train import finetune, load
from earmark.speech_llm.trainer import SpeechTrainer
from earmark.speech_llm.whisper_qwen3 import build_model

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


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_conversations(tmp_path_factory.mktemp("noise"), ANSWERS)


def flags(chosen: Settings) -> list[str]:
    """The command line that gives these settings."""
    return [
        f"--{name}={value}" for group in asdict(chosen).values() for name, value in group.items() if value is not None
    ]


def test_a_tiny_model_learns_real_utterances_by_heart(bases: tuple[str, str], demo: Path, tmp_path: Path) -> None:
    talks = demo_conversations(demo, tmp_path / "audio", 20)
    output = tmp_path / "model"
    finetune(
        settings(
            bases, talks, output, freeze_whisper=False, train_qwen3_layers=2, lora_dropout=0.0,
            lora_targets="q_proj,v_proj,o_proj,up_proj", projector_stack=8, learning_rate=5e-3, num_train_epochs=45.0,
            per_device_train_batch_size=5, save_steps=999, logging_steps=4,  # an epoch
        )
    )  # fmt: skip
    losses = [entry["loss"] for entry in metrics(output) if "loss" in entry]
    assert losses[0] > 5
    assert losses[-1] < 0.1

    # Twenty sentences can be learned without listening, but not which of them goes with which audio.
    model, chat, collate = load(output)
    prompt = chat.prompt_ids((Turn("user", f"{AUDIO}What is said?"),))
    right = 0
    for line in talks.read_text().splitlines():
        asked, answered = (turn["value"] for turn in json.loads(line)["conversations"])
        audio = Path(asked.removeprefix("<audio>").partition("</audio>")[0])
        batch = collate([Sample("", audio, Tokens(prompt, prompt))])
        del batch["labels"]
        (said,) = model.generate(**batch, end_id=chat.end_id, max_new_tokens=40)
        right += chat.tokenizer.decode(said, skip_special_tokens=True) == answered
    assert right >= 18

    report = json.loads((output / "audit.json").read_text())
    parts = report["parts"]
    assert {name for name, part in parts.items() if part["trainable"]} == {"whisper", "projector", "lora", "qwen3"}
    saved = load_file(output / "trained.safetensors")
    assert sum(weight.numel() for weight in saved.values()) == report["trainable"] < report["parameters"]


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_the_middle_of_the_file(state: TrainerState, path: str) -> None:
    Path(path).write_text('{"epoch": 1.0, "log_history": [')
    _die()


# Where the process dies: the method during whose call of that number it happens. Two epochs of four steps.
MOMENTS: dict[str, tuple[Any, str, int, Any]] = {
    "between two checkpoints": (SpeechTrainer, "training_step", 4, _die),
    "while the state is written": (TrainerState, "save_to_json", 2, _die_in_the_middle_of_the_file),
    "between weights and optimiser": (Trainer, "_save_optimizer_and_scheduler", 3, _die),
}


def _resumable(bases: tuple[str, str], noise: Path, output: Path) -> Settings:
    """Dropout, an average to remember, a cosine in the middle of an epoch: what a restart could get wrong."""
    return settings(
        bases, noise, output, num_train_epochs=2.0, save_steps=2, lora_dropout=0.2, learning_rate=1e-2,
        grad_norm_ema_decay=0.5, grad_norm_spike=1.01, grad_norm_lr_reaction=True, early_lr_factor=0.5,
        early_lr_steps=5, lora_grad_clip=0.5, train_qwen3_layers=1, logging_steps=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(bases: tuple[str, str], noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    finetune(_resumable(bases, noise, output))
    return output


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    moment: str,
    bases: tuple[str, str],
    noise: Path,
    undisturbed: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = _resumable(bases, noise, tmp_path / "model")
    owner, name, at_call, death = MOMENTS[moment]
    pid = os.fork()
    if not pid:
        calls, real = 0, getattr(owner, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return (death if calls == at_call else real)(*args, **kwargs)

        setattr(owner, name, dying)
        finetune(chosen)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "model/trained.safetensors").exists()
    with caplog.at_level("INFO"):
        finetune(chosen)
    assert "a killed training of these settings goes on from" in caplog.text
    assert "checked step: loss" in caplog.text
    expected = load_file(undisturbed / "trained.safetensors")
    resumed = load_file(tmp_path / "model/trained.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())
    assert metrics(tmp_path / "model") == metrics(undisturbed)


def test_a_checkpoint_holds_what_trains_and_says_if_it_gives_another_loss(
    bases: tuple[str, str], noise: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (folder,) = (undisturbed / "checkpoints").iterdir()
    checkpoint = last_checkpoint(folder, 1)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-8"
    assert load_file(checkpoint / "trained.safetensors").keys() == load_file(undisturbed / "trained.safetensors").keys()
    assert not list(checkpoint.glob("model*"))
    assert last_checkpoint(folder, 2) is None  # the other process's random state is not there

    other = tmp_path / "qwen3"  # a base that was changed in place
    other.mkdir()
    for source in Path(bases[1]).iterdir():
        (other / source.name).write_bytes(source.read_bytes())
    output = tmp_path / "model"
    chosen = settings((bases[0], str(other)), noise, output, save_steps=2)
    finetune(chosen)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointChanged, match="the base models, the audio or the machine have changed"):
        finetune(chosen)


def test_two_processes_take_the_steps_of_one_with_the_joint_batch(
    bases: tuple[str, str], noise: Path, tmp_path: Path
) -> None:
    seven = tmp_path / "seven.jsonl"  # an odd number: a process has one less
    seven.write_text("".join(noise.read_text().splitlines(keepends=True)[:7]))
    shared: dict[str, Any] = {"lora_dropout": 0.0, "learning_rate": 1e-3, "save_steps": 99, "valid_json": str(seven)}
    alone, joint = tmp_path / "alone", tmp_path / "joint"
    finetune(settings(bases, noise, alone, per_device_train_batch_size=4, **shared))
    # By address, not by the machine's name, which need not resolve.
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2"]
    command = [sys.executable, "-m", *torchrun, "-m"]
    chosen = settings(bases, noise, joint, per_device_train_batch_size=2, **shared)
    done = subprocess.run(
        [*command, "earmark.speech_llm", *flags(chosen)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([e.get("loss", e.get("eval_loss")) for e in metrics(folder)] for folder in (alone, joint))
    assert len(one) == 3
    assert one == pytest.approx(two, abs=1e-5)
    one_weights, two_weights = load_file(alone / "trained.safetensors"), load_file(joint / "trained.safetensors")
    for name, weight in one_weights.items():
        torch.testing.assert_close(two_weights[name], weight, atol=1e-5, rtol=1e-4)


def test_accumulated_batches_take_the_steps_of_one_batch(bases: tuple[str, str], noise: Path, tmp_path: Path) -> None:
    for name, batch, accumulated in (("once", 4, 1), ("parts", 1, 4)):
        finetune(
            settings(
                bases, noise, tmp_path / name, per_device_train_batch_size=batch, manual_loss=name == "parts",
                gradient_accumulation_steps=accumulated, lora_dropout=0.0, save_steps=99,
            )
        )  # fmt: skip
    once, parts = (load_file(tmp_path / name / "trained.safetensors") for name in ("once", "parts"))
    for name, weight in once.items():
        torch.testing.assert_close(parts[name], weight, atol=1e-5, rtol=1e-4)
    figures = [[entry["loss"] for entry in metrics(tmp_path / name) if "loss" in entry] for name in ("once", "parts")]
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def test_a_training_that_diverges_stops_with_the_parameter_and_writes_no_model(
    bases: tuple[str, str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["earmark", "finetune", *flags(settings(bases, noise, tmp_path, learning_rate=1e30, max_grad_norm=0.0))]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 1
    told = json.loads((tmp_path / "nan_snapshot.json").read_text())
    assert told["parameters"]
    assert told["batches"][-1]["valid_labels"] > 0
    assert not (tmp_path / "trained.safetensors").exists()


def test_the_projector_does_not_move_in_the_steps_in_which_it_is_frozen(
    bases: tuple[str, str], noise: Path, tmp_path: Path
) -> None:
    finetune(settings(bases, noise, tmp_path, freeze_projector_steps=3, save_steps=3))
    (frozen,) = tmp_path.glob("checkpoints/*/checkpoint-3/trained.safetensors")
    every, most = load_file(frozen), load_file(tmp_path / "trained.safetensors")
    begun = dict(build_model(settings(bases, noise, tmp_path).model, audio_id=0, seed=0).named_parameters())
    for name, weight in every.items():
        if name.startswith("projector"):
            assert torch.equal(weight, begun[name])
            assert not torch.equal(most[name], weight)
    assert every["qwen3.model.layers.0.self_attn.q_proj.lora_B.default.weight"].any()
    with pytest.raises(ConfigError, match="the training has 4 steps"):
        finetune(settings(bases, noise, tmp_path / "never", freeze_projector_steps=4))


def test_a_base_in_float16_is_refused_before_a_step(bases: tuple[str, str], noise: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no loss scaling; take bfloat16"):
        finetune(settings(bases, noise, tmp_path, qwen3_dtype="float16"))


def test_a_burst_of_nan_is_passed_over_and_counted_where_asked(
    bases: tuple[str, str],
    noise: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = SpeechTrainer.compute_loss

    def ill(self: SpeechTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(SpeechTrainer, "compute_loss", ill)
    with caplog.at_level("INFO"):
        finetune(settings(bases, noise, tmp_path / "skip", on_nan="skip", save_steps=99, debug_loss=True))
    logged = [record.message for record in caplog.records if ", loss" in record.message or ": loss " in record.message]
    assert [line.split(":")[0] for line in logged] == [f"step {step}" for step in range(4)]
    assert all(line.endswith(" labels") for line in logged)
    told = [entry for entry in metrics(tmp_path / "skip") if "loss" in entry]
    assert [entry.get("skipped_steps") for entry in told] == [None, 1, 1, 1]
    assert told[1]["loss"] == 0.0
    assert all(1.0 < told[number]["loss"] < 100.0 for number in (0, 2, 3))
    assert "1 steps were skipped because of NaN or infinity" in caplog.text
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "skip/trained.safetensors").values())
    with pytest.raises(TrainingDiverged, match="step 1: gradients of"):
        finetune(settings(bases, noise, tmp_path / "stop"))
    assert len(metrics(tmp_path / "stop")) == 1  # of the step before


def test_a_loss_that_is_infinite_stops_though_no_gradient_is(
    bases: tuple[str, str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.compute_loss

    def infinite(*args: Any, **kwargs: Any) -> Any:
        loss, outputs = real(*args, **kwargs)
        return loss + float("inf"), outputs

    monkeypatch.setattr(Trainer, "compute_loss", infinite)
    with pytest.raises(TrainingDiverged, match="the loss is not finite in 1 batches"):
        finetune(settings(bases, noise, tmp_path))


def test_audio_that_goes_bad_during_training_is_told_in_one_sentence(
    bases: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = write_noise(tmp_path / "a.wav", 8_000)
    with soundfile.SoundFile(tmp_path / "ill.wav", "w", 16_000, 1, "FLOAT") as file:
        file.write(np.full(8_000, np.nan, np.float32))
    lines = write_lines(tmp_path / "t.jsonl", [talk(a, "What?", "a farm") for a in (wav, tmp_path / "ill.wav")])
    chosen = settings(bases, lines, tmp_path / "model", check_audio=False, dataloader_num_workers=1)
    monkeypatch.setattr(sys, "argv", ["earmark", "finetune", *flags(chosen)])
    assert cli.main() == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith("is empty, not mono, or holds NaN or infinity")
    assert told.startswith(f"earmark: {tmp_path / 'ill.wav'}: ")


def test_the_rate_that_is_logged_is_the_one_the_optimiser_took(
    bases: tuple[str, str], noise: Path, tmp_path: Path
) -> None:
    lowered = {"early_lr_steps": 2, "early_lr_factor": 0.25, "warmup_ratio": 0.0, "learning_rate": 1e-3}
    finetune(settings(bases, noise, tmp_path, lr_scheduler_type="constant_with_warmup", **lowered))
    rates = [entry["learning_rate"] for entry in metrics(tmp_path) if "loss" in entry]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 1e-3, 1e-3])


def test_the_loss_on_validation_data_is_the_mean_over_labels_whatever_the_batches(
    bases: tuple[str, str], noise: Path, tmp_path: Path
) -> None:
    seven = tmp_path / "seven.jsonl"
    seven.write_text("".join(noise.read_text().splitlines(keepends=True)[:7]))
    shared: dict[str, Any] = {"valid_json": str(seven), "learning_rate": 1e-30, "save_steps": 99}
    losses = []
    for size in (1, 3):
        chosen = settings(bases, noise, tmp_path / str(size), per_device_train_batch_size=size, **shared)
        finetune(chosen)
        losses += [entry["eval_loss"] for entry in metrics(tmp_path / str(size)) if "eval_loss" in entry]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    model, chat, collate = load(tmp_path / "1")
    data = DataSettings(train_json=str(seven))
    with torch.no_grad():
        batch = collate(list(read_samples(seven, tmp_path / "x.json", chat, data, model.clips)))
        assert losses[0] == pytest.approx(model(**batch)["loss"].item(), abs=1e-5)


def test_a_training_that_does_not_go_on_removes_what_an_earlier_one_left(
    bases: tuple[str, str], noise: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(bases, noise, tmp_path, save_steps=2)
    finetune(chosen)
    (mine,) = (tmp_path / "checkpoints").iterdir()
    with caplog.at_level("INFO"):
        finetune(chosen)
    assert "has ended already" in caplog.text
    assert "a killed training" not in caplog.text
    caplog.clear()
    (mine / "kept").touch()
    (tmp_path / "nan_snapshot.json").write_text("{}")
    with caplog.at_level("INFO"):
        finetune(replace(chosen, train=replace(chosen.train, resume=False)))
    assert "checked step" not in caplog.text
    assert not (mine / "kept").exists()
    assert not (tmp_path / "nan_snapshot.json").exists()
    with pytest.raises(TrainingDiverged):
        finetune(settings(bases, noise, tmp_path, learning_rate=1e30, max_grad_norm=0.0))
    assert not mine.exists()
    assert not (tmp_path / "speech_llm.json").exists()
    assert not (tmp_path / "trained.safetensors").exists()


def test_the_key_of_a_training_is_of_what_shapes_its_weights(
    bases: tuple[str, str], noise: Path, tmp_path: Path
) -> None:
    def key(processes: int = 1, **changed: Any) -> str:
        return training_key(settings(bases, noise, tmp_path, **changed), [noise], processes)

    same = ({"save_steps": 7}, {"logging_steps": 3}, {"on_nan": "skip", "max_nan_skips": 3}, {"resume": False})
    assert {key(**changed) for changed in same} == {key()}
    other = ({"learning_rate": 1e-3}, {"lora_r": 4}, {"max_length": 99}, {"max_grad_norm": 2.0}, {"seed": 1})
    keys = {key(), key(processes=2), *(key(**changed) for changed in other)}
    assert len(keys) == 2 + len(other)
    before = key()
    os.utime(noise, ns=(0, noise.stat().st_mtime_ns + 1))
    assert key() != before


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_checked_loss_that_is_not_finite_is_refused_whatever_the_tolerance(loss: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointChanged):
        check_loss(tmp_path, loss, loss, float("inf"))
    check_loss(tmp_path, 2.0, 2.001, 1e-3)


def test_a_training_that_goes_on_remembers_the_steps_it_skipped(
    bases: tuple[str, str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, step = SpeechTrainer.compute_loss, 1

    def ill(self: SpeechTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        return loss * float("nan") if self.model.training and self.state.global_step in (1, step) else loss

    monkeypatch.setattr(SpeechTrainer, "compute_loss", ill)
    shared: dict[str, Any] = {"on_nan": "skip", "max_nan_skips": 1, "save_steps": 2}
    step = 2
    with pytest.raises(TrainingDiverged):  # the second on end
        finetune(settings(bases, noise, tmp_path, **shared))
    with pytest.raises(TrainingDiverged, match="step 2"):  # still, though the first came before the checkpoint
        finetune(settings(bases, noise, tmp_path, **shared))
    assert json.loads((tmp_path / "nan_snapshot.json").read_text())["skipped"] == 1
    step = 1
    finetune(settings(bases, noise, tmp_path, **shared))
    assert metrics(tmp_path)[-1]["skipped_steps"] == 1


def test_several_processes_do_not_share_a_model_on_two_kinds_of_devices(
    bases: tuple[str, str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="whisper_cpu puts parameters on two kinds of devices"):
        finetune(settings(bases, noise, tmp_path, whisper_cpu=True))


def test_one_process_does_not_spread_over_gpus_by_accident(
    bases: tuple[str, str], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"torchrun --nproc_per_node 2 -m earmark\.speech_llm"):
        finetune(settings(bases, noise, tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device_map spreads one process"):
        finetune(settings(bases, noise, tmp_path, device_map="auto"))


def test_one_of_several_processes_writes_the_checkpoint(tmp_path: Path) -> None:
    other = SpeechTrainer.__new__(SpeechTrainer)
    other.args = SimpleNamespace(should_save=False)  # type: ignore[assignment]
    other._save(str(tmp_path / "checkpoint-1"))
    assert not list(tmp_path.iterdir())
