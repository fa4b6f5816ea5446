"""Answers are the model's own likeliest words; the configuration's section is the flags; packed wavs are told."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from speech_llm_bases import make_bases, settings, talk, write_lines, write_noise

from earmark.artifacts import table_counts
from earmark.errors import ConfigError, EarmarkError, InputError
from earmark.speech_llm.answers import Answerer, answer_split
from earmark.speech_llm.batches import Sample
from earmark.speech_llm.conversations import AUDIO, Turn
from earmark.speech_llm.labels import Tokens
from earmark.speech_llm.launch import train_speech_llm
from earmark.speech_llm.section import as_flags, backend_flags, check_section, flag_defaults, settings_of
from earmark.speech_llm.settings import parse_settings
from earmark.speech_llm.train import load

CLIPS = {"short": 7_000, "middle": 16_000, "long": 31_000}  # samples
QUESTIONS = {"short": "What?", "middle": "What is said in this one?", "long": "And here?"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    rows = [
        talk(write_noise(folder / f"{name}.wav", samples, number), QUESTIONS[name], f"a {name} farm")
        for number, (name, samples) in enumerate(CLIPS.items())
    ]
    return write_lines(folder / "train.jsonl", rows)


@pytest.fixture(scope="module")
def trained(bases: tuple[str, str], lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a few steps: sure enough of its words that rounding changes none, and not done with learning."""
    output = tmp_path_factory.mktemp("models") / "whisper_qwen3"
    chosen = settings(
        bases, lines, output, use_lora=False, train_qwen3_layers=3, num_train_epochs=12.0, learning_rate=5e-3
    )
    train_speech_llm(chosen, wavs=[], processes=1, threads=1)
    return output


def argmax_decode(folder: Path, audio: Path, question: str, max_new_tokens: int) -> tuple[list[int], bool]:
    """Tokens by whole forward passes, one clip alone, without padding or a cache."""
    model, chat, collate = load(folder)
    ids = chat.prompt_ids((Turn("user", AUDIO + question),))
    said: list[int] = []
    while len(said) < max_new_tokens:
        longer = np.concatenate([ids, np.array(said, np.int32)])
        batch = collate([Sample("", audio, Tokens(longer, longer))])
        del batch["labels"]
        with torch.no_grad():
            token = int(model(**batch).logits[0, -1].argmax())
        if token == chat.end_id:
            return said, True
        said.append(token)
    return said, False


@pytest.mark.parametrize("max_new_tokens", [12, 2])
def test_batched_answers_are_what_the_model_says_of_each_clip_alone(
    trained: Path, lines: Path, tmp_path: Path, max_new_tokens: int
) -> None:
    output = tmp_path / "answers.parquet"
    answer_split(
        trained, lines, output, wavs=[], max_new_tokens=max_new_tokens, batch_size=3, threads=1,
        max_rejected_fraction=0.0,
    )  # fmt: skip
    rows = {row["chunk_id"]: row for row in pq.read_table(output).to_pylist()}
    assert list(rows) == list(CLIPS)
    _, chat, _ = load(trained)
    for name, row in rows.items():
        said, finished = argmax_decode(trained, lines.parent / f"{name}.wav", QUESTIONS[name], max_new_tokens)
        assert row["text"] == chat.tokenizer.decode(said, skip_special_tokens=True).strip() != ""
        assert row["finished"] == finished
    assert {row["finished"] for row in rows.values()} == {max_new_tokens == 12}


def test_the_answer_in_a_line_is_not_shown_to_the_model(trained: Path, lines: Path, tmp_path: Path) -> None:
    audio = lines.parent / "short.wav"
    told = write_lines(tmp_path / "told.jsonl", [talk(audio, "What?", "x"), talk(audio, "What?", "a long farm " * 9)])
    output = tmp_path / "answers.parquet"
    answer_split(trained, told, output, wavs=[], max_new_tokens=12, batch_size=1, threads=1, max_rejected_fraction=0.0)
    first, second = pq.read_table(output).column("text").to_pylist()
    assert first == second


def test_lines_without_audio_are_rejected_and_the_others_answered(trained: Path, lines: Path, tmp_path: Path) -> None:
    rows: list[Any] = [talk(lines.parent / "short.wav", "What?", "x"), talk(tmp_path / "gone.wav", "What?", "x"), "{"]
    output = tmp_path / "answers.parquet"
    answer_split(
        trained, write_lines(tmp_path / "lines.jsonl", rows), output, wavs=[], max_new_tokens=2, batch_size=2,
        threads=1, max_rejected_fraction=0.9,
    )  # fmt: skip
    counts = table_counts(output)
    assert (counts["kept"], counts["reasons"]) == (1, {"bad_audio": 1, "not_json": 1})


def test_a_model_folder_holds_no_checkpoints_and_names_itself(trained: Path) -> None:
    assert sorted(path.name for path in trained.parent.iterdir()) == ["whisper_qwen3"]
    assert not (trained / "checkpoints").exists()
    assert str(trained) in (trained / "speech_llm.json").read_text()
    assert Answerer.load(trained, 1).chat.end_id


def test_what_a_training_of_other_settings_left_behind_is_not_taken_for_this_ones(
    bases: tuple[str, str], lines: Path, tmp_path: Path
) -> None:
    left = tmp_path / "models/.whisper_qwen3.training"
    (left / "checkpoints/of_another/checkpoint-3").mkdir(parents=True)
    (left / "nan_step_7.json").write_text("{}")
    output = tmp_path / "models/whisper_qwen3"
    train_speech_llm(settings(bases, lines, output), wavs=[], processes=1, threads=1)
    assert (output / "trained.safetensors").exists()
    assert not (output / "nan_step_7.json").exists()
    assert not left.exists()


def test_the_section_holds_every_flag_with_its_default(repo: Path) -> None:
    section = yaml.safe_load((repo / "config.yaml").read_text(encoding="utf-8"))["speech_llm"]
    defaults = flag_defaults()
    named = {name for name, value in defaults.items() if value is None} - {"device_map"}
    assert named == {"whisper_model", "qwen3_model", "qwen2_audio_model"}
    own = section.pop("qwen2_audio")
    assert not own.keys() & section.keys()
    section |= own
    for name in named:
        assert section.pop(name)
    workflows = {"answer_batch_size", "max_new_tokens", "hints", "hint_prompt"}
    assert workflows <= section.keys()
    assert {name: section[name] for name in section.keys() - workflows} == {
        name: value for name, value in defaults.items() if name not in named
    }


GIVEN: dict[str, Any] = {
    "train_json": Path("a"), "valid_json": Path("b"), "output_dir": Path("c"), "seed": 3, "max_rejected_fraction": 0.2,
}  # fmt: skip


@pytest.fixture
def section(repo: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((repo / "config.yaml").read_text(encoding="utf-8"))["speech_llm"])


def test_the_section_and_the_command_line_give_the_same_settings(section: dict[str, Any]) -> None:
    made = settings_of(backend_flags({**section, "use_lora": True}, "whisper_qwen3"), "whisper_qwen3", **GIVEN)
    assert (made.train.seed, made.data.max_rejected_fraction, made.model.use_lora) == (3, 0.2, True)
    assert parse_settings(as_flags(made)) == made


@pytest.mark.parametrize("method", ["lora", "projector", "none"])
def test_so_they_do_for_qwen2_audio_which_does_not_see_what_is_whispers_alone(
    section: dict[str, Any], method: str
) -> None:
    section |= {"freeze_whisper": False, "freeze_projector_steps": 9, "use_lora": True, "learning_rate": 2e-5}
    section["qwen2_audio"] |= {"method": method, "i_know_this_overwrites_alignment": True}
    made = settings_of(backend_flags(section, "qwen2_audio"), "qwen2_audio", **GIVEN)
    assert (made.model.architecture, made.model.method) == ("qwen2_audio", method)
    assert made.train.learning_rate == (1e-4 if method == "none" else 2e-5)
    assert parse_settings(as_flags(made)) == made


def test_a_key_that_no_named_backend_reads_is_refused_with_the_reason(section: dict[str, Any]) -> None:
    section |= {"use_lora": True, "freeze_projector_steps": 9}
    check_section(section, ["retriever"])
    check_section(section, ["retriever", "whisper_qwen3", "qwen2_audio"])
    with pytest.raises(ConfigError, match=r"speech_llm\.use_lora is True, but it is a flag of"):
        check_section(section, ["retriever", "qwen2_audio"])
    section |= {"use_lora": False, "lora_r": 4, "freeze_projector_steps": 0}
    check_section(section, ["retriever", "whisper_qwen3", "qwen2_audio"])  # qwen2_audio has adapters
    with pytest.raises(ConfigError, match=r"speech_llm\.lora_r is 4, but use_lora is not set.*; leave it out$"):
        check_section(section, ["retriever", "whisper_qwen3"])
    section |= {"lora_r": 8}
    section["qwen2_audio"] |= {"i_know_this_overwrites_alignment": True}
    check_section(section, ["retriever", "whisper_qwen3"])  # that part is not read
    with pytest.raises(ConfigError, match=r"speech_llm\.qwen2_audio\.i_know_this_overwrites_alignment is True"):
        check_section(section, ["retriever", "qwen2_audio"])


def test_settings_of_the_section_that_make_no_sense_together_are_refused(section: dict[str, Any]) -> None:
    flags = backend_flags({**section, "whisper_cpu": True, "freeze_whisper": False}, "whisper_qwen3")
    with pytest.raises(ConfigError, match="whisper_cpu"):
        settings_of(flags, "whisper_qwen3", **GIVEN)


@pytest.mark.parametrize(
    ("changed", "own", "told"),
    [
        ({}, {"method": "projector"}, r"as qwen2_audio reads it: method projector .* i_know_this_overwrites"),
        ({"load_in_4bit": True, "load_in_8bit": True, "use_lora": True}, {}, "load_in_4bit and load_in_8bit exclude"),
        ({"load_in_4bit": True}, {}, "as whisper_qwen3 reads it: quantised weights cannot train; set use_lora"),
        ({"warmup_ratio": 1.0}, {}, "warmup_ratio is 1"),
        ({"grad_norm_lr_reaction": True}, {}, "set grad_norm_ema_decay"),
    ],
)
def test_what_could_never_train_is_refused_before_the_first_job(
    section: dict[str, Any], changed: dict[str, Any], own: dict[str, Any], told: str
) -> None:
    section |= changed
    section["qwen2_audio"] |= own
    check_section(section, ["retriever"])  # nothing of it is read
    with pytest.raises(ConfigError, match=told):
        check_section(section, ["retriever", "whisper_qwen3", "qwen2_audio"])


def test_wavs_that_are_still_packed_are_told_before_anything_is_trained(bases: tuple[str, str], tmp_path: Path) -> None:
    packed = tmp_path / "wavs/0000"
    packed.mkdir(parents=True)
    with tarfile.open(packed / "wavs.tar", "w"):
        pass
    train = write_lines(tmp_path / "train.jsonl", [talk(packed / "a.wav", "What?", "x")])
    chosen = settings(bases, train, tmp_path / "models/whisper_qwen3")
    with pytest.raises(InputError, match="unpack all 1 where the lines say"):
        train_speech_llm(chosen, wavs=[packed], processes=1, threads=1)
    assert not (tmp_path / "models").exists()


def test_training_in_two_processes_gives_the_model_or_the_reason(
    bases: tuple[str, str], lines: Path, tmp_path: Path
) -> None:
    output = tmp_path / "models/whisper_qwen3"
    train_speech_llm(settings(bases, lines, output, per_device_train_batch_size=1), wavs=[], processes=2, threads=2)
    assert {path.name for path in output.iterdir()} >= {"trained.safetensors", "audit.json", "train_metrics.jsonl"}
    missing = settings((bases[0], str(tmp_path / "no_model")), lines, tmp_path / "models/other")
    with pytest.raises(EarmarkError, match="no_model: no tokenizer could be loaded"):
        train_speech_llm(missing, wavs=[], processes=2, threads=2)
