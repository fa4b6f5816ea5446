"""FunASR's configuration as Earmark puts it together and checks it, and model directories; FunASR itself never runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from funasr_model import REPO

from earmark.cluster import run_checks
from earmark.errors import ConfigError, InputError
from earmark.funasr_nano.commands import add_commands, flags_of
from earmark.funasr_nano.model_folder import find_model, read_model, write_model_files
from earmark.funasr_nano.settings import check_conf, merged, set_key, training_conf
from earmark.funasr_nano.train import train_funasr_nano

TRACKED = REPO / "conf/train_funasr_nano.yaml"


def section(**over: Any) -> dict[str, Any]:
    """As config.yaml has it."""
    return yaml.safe_load((REPO / "config.yaml").read_text(encoding="utf-8"))["funasr_nano"] | {"conf": TRACKED} | over


def model_directory(folder: Path, **files: Any) -> Path:
    """Empty files laid out as a published model's; `files` are merged into its configuration.json."""
    (folder / "Qwen3-0.6B").mkdir(parents=True)
    for name in (
        "model.pt",
        "am.mvn",
        "Qwen3-0.6B/config.json",
        "Qwen3-0.6B/tokenizer.json",
        "Qwen3-0.6B/model.safetensors",
    ):
        (folder / name).write_text("{}")
    metas = {"init_param": "model.pt", "config": "config.yaml", "frontend_conf": {"cmvn_file": "am.mvn"}} | files
    (folder / "configuration.json").write_text(json.dumps({"framework": "pytorch", "file_path_metas": metas}))
    conf = {
        "model": "FunASRNano",
        "tokenizer": "HuggingfaceTokenizer",
        "llm_conf": {"init_param_path": "Qwen3-0.6B", "hub": "hf"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(conf))
    return folder


def test_the_edited_file_is_honoured_and_overridden_key_by_key(tmp_path: Path) -> None:
    edited = tmp_path / "mine.yaml"
    edited.write_text(
        "train_conf: {max_epoch: 7, grad_clip: 1}\noptim: adam\nllm_conf: {lora_conf: {r: 4, lora_alpha: 8}}\n"
    )
    over = {"train_conf": {"grad_clip": 2}, "llm_conf": {"lora_conf": {"r": 2}}}
    conf = training_conf(section(conf=edited, **over), {"train_conf": {"accum_grad": 3}})
    assert conf["train_conf"] == {"max_epoch": 7, "grad_clip": 2, "accum_grad": 3}
    assert conf["llm_conf"] == {"lora_conf": {"r": 2, "lora_alpha": 8}}
    assert conf["optim"] == "adam"  # the section's null leaves it
    assert not {"model_dir", "python", "conf", "lora_only", "max_new_tokens"} & conf.keys()


def test_the_tracked_file_and_the_tracked_section_go_together() -> None:
    conf = training_conf(section())
    assert conf["llm_conf"]["use_lora"] is conf["lora_only"] is True
    assert isinstance(conf["optim_conf"]["lr"], float)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"llm_conf": {"llm_dtype": "fp16"}}, "llm_dtype is fp16 with LoRA.*bf16 or fp32"),
        ({"train_conf": {"use_fp16": True}}, "use_fp16 is true with LoRA"),
        ({"llm_conf": {"llm_dtype": "float32"}}, "llm_dtype is 'float32'; expected fp32, bf16 or fp16"),
        ({"llm_conf": {"init_param_path": "Qwen3-0.6B"}}, "init_param_path is 'Qwen3-0.6B', a relative path.*absolute"),
        ({"llm_conf": {"use_lora": False}}, "lora_only is true without llm_conf.use_lora"),
        (
            {"train_conf": {"effective_save_name_excludes": ["llm"]}},
            "effective_save_name_excludes would leave weights out",
        ),
        ({"train_conf": {"use_deepspeed": True}}, "use_deepspeed"),
        ({"train_conf": {"use_ddp": True}}, "use_ddp is ignored"),
        ({"train_conf": {"wandb_token": "hf_secret"}}, "set WANDB_API_KEY"),
        ({"ctc_decoder_conf": {"freeze": False}}, "CTC decoder takes no part"),
        (
            {"llm_conf": {"load_kwargs": {"trust_remote_code": True}}},
            "llm_conf.load_kwargs.trust_remote_code: would run",
        ),
        ({"llm_conf": {"load_kwargs": {"attn_implementation": "me/mine"}}}, "attn_implementation: would run code"),
        ({"audio_encoder_conf": {"hub": "ms"}}, "audio_encoder_conf.hub: would run code"),
        ({"llm_conf": {"init_param_path": "/nowhere"}}, "/nowhere, which holds no config.json"),
        ({"optim_conf": {"lr": "2e-4"}}, "optim_conf.lr is '2e-4', a text and no number"),
        ({"optim_conf": {"betas": [0.9, "1e-1"]}}, "optim_conf.betas.1 is '1e-1'"),
        ({"train_conf": 3}, "train_conf is 3; expected keys below it"),
    ],
)
def test_what_funasr_would_go_wrong_with_is_refused(over: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        training_conf(section(), over)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"train_conf": {"use_deepspeed": True}}, "train_conf.use_deepspeed: its checkpoints"),
        ({"use_deepspeed": True}, "^use_deepspeed: its checkpoints"),
        ({"fp16": True}, "fp16: FunASR would round all weights"),
        ({"excludes": "llm"}, "excludes: FunASR would leave weights out"),
        ({"lora_only": True}, "lora_only is true without llm_conf.use_lora"),
        ({"train_conf": {"effective_save_name_excludes": ["llm."]}}, "effective_save_name_excludes would leave"),
    ],
)
def test_the_same_in_the_models_own_configuration_is_refused(tmp_path: Path, own: dict[str, Any], told: str) -> None:
    folder = model_directory(tmp_path / "model")
    said = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(said | own))
    mine = tmp_path / "mine.yaml"
    mine.write_text("train_conf: {max_epoch: 1}")
    with pytest.raises(ConfigError, match=told):
        train_funasr_nano(
            section(model_dir=str(folder), conf=mine), train_lines=mine, dev_lines=mine, output=tmp_path / "out",
            processes=1, threads=1, seed=0, max_rejected_fraction=0.1,
        )  # fmt: skip
    # The tracked file says what to do about training, whatever the model says.
    if "train_conf" in own:
        check_conf(merged(read_model(folder).with_paths(), training_conf(section())))


def test_numbers_are_read_as_funasr_reads_them(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("optim_conf: {lr: 1e-4, weight_decay: 1E+2}\nname: 1e-4x\n")
    flags: dict[str, Any] = {}
    set_key(flags, "train_conf.grad_clip=5e-1")
    conf = training_conf(section(conf=mine), flags)
    assert conf["optim_conf"] == {"lr": 0.0001, "weight_decay": 100.0}
    assert (conf["name"], conf["train_conf"]) == ("1e-4x", {"grad_clip": 0.5})


def test_fp16_without_lora_is_left_to_the_audit_of_what_trains() -> None:
    conf = training_conf(section(), {"llm_conf": {"llm_dtype": "fp16", "use_lora": False}, "lora_only": False})
    assert conf["llm_conf"]["llm_dtype"] == "fp16"


def test_flags_have_the_names_that_users_know_and_set_any_key() -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    line = (
        "funasr train --model_dir m --train_data t.jsonl --valid-data d.jsonl --output_dir o --batch_size 400 "
        "--max_epoch 3 --learning_rate 2e-4 --set train_conf.accum_grad=4 "
        "--set llm_conf.lora_conf.target_modules=[q_proj,k_proj]"
    )
    assert flags_of(parser.parse_args(line.split())) == {
        "train_conf": {"accum_grad": 4, "max_epoch": 3},
        "llm_conf": {"lora_conf": {"target_modules": ["q_proj", "k_proj"]}},
        "dataset_conf": {"batch_size": 400},
        "optim_conf": {"lr": 0.0002},
    }


@pytest.mark.parametrize("assignment", ["train_conf.max_epoch", "=3", "train_conf..r=3", "lora_only=[1"])
def test_an_assignment_that_is_none_is_told(assignment: str) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    line = ["funasr", "train", "--model_dir=m", "--train_data=t", "--valid_data=d", "--output_dir=o"]
    with pytest.raises(ConfigError, match="--set"):
        flags_of(parser.parse_args([*line, "--set", assignment]))


@pytest.mark.parametrize(
    "name", ["config.yaml", "configuration.json", "model.pt", "Qwen3-0.6B/config.json", "Qwen3-0.6B/tokenizer.json"]
)
def test_a_file_that_a_model_directory_lacks_is_named(tmp_path: Path, name: str) -> None:
    folder = model_directory(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"no whole Fun-ASR-Nano; it lacks {name.replace('.', '[.]')}\."):
        read_model(folder)


def test_relative_paths_of_a_published_model_become_absolute_wherever_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_directory(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    conf = find_model("model", Path("python")).with_paths()
    assert conf["llm_conf"] == {"init_param_path": str(tmp_path / "model/Qwen3-0.6B"), "hub": "hf"}
    assert conf["tokenizer_conf"] == {"init_param_path": str(tmp_path / "model/Qwen3-0.6B")}
    assert conf["init_param"] == str(tmp_path / "model/model.pt")
    assert conf["frontend_conf"] == {"cmvn_file": str(tmp_path / "model/am.mvn")}


def test_a_trained_folder_is_a_model_directory_without_paths_of_the_first(tmp_path: Path) -> None:
    first = read_model(model_directory(tmp_path / "model"))
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "model.pt.best").write_text("")
    write_model_files(first, {"llm_conf": {"use_lora": True}}, "model.pt.best", trained)
    moved = trained.rename(tmp_path / "moved")
    model = read_model(moved)
    assert model.conf["llm_conf"] == {"init_param_path": "Qwen3-0.6B", "hub": "hf", "use_lora": True}
    assert model.with_paths()["init_param"] == str(moved / "model.pt.best")
    assert model.with_paths()["frontend_conf"] == {"cmvn_file": str(moved / "am.mvn")}
    assert not (moved / "Qwen3-0.6B/model.safetensors").exists()  # the weights are in model.pt.best


@pytest.mark.parametrize(
    ("name", "said", "key"),
    [
        ("config.yaml", {"trust_remote_code": True, "remote_code": "run.py"}, "trust_remote_code, remote_code"),
        ("config.yaml", {"vad_kwargs": {"trust_remote_code": True}}, "vad_kwargs.trust_remote_code"),
        ("config.yaml", {"vad_model": "fsmn-vad"}, "vad_model"),
        ("config.yaml", {"parts": [{"trust_remote_code": "yes"}]}, "parts.0.trust_remote_code"),
        ("configuration.json", {"file_path_metas": {"remote_code": "am.mvn"}}, "remote_code"),
        ("Qwen3-0.6B/config.json", {"attn_implementation": "me/mine"}, "attn_implementation"),
    ],
)
def test_a_model_that_brings_code_is_refused(tmp_path: Path, name: str, said: dict[str, Any], key: str) -> None:
    folder = model_directory(tmp_path / "model")
    path = folder / name
    path.write_text(json.dumps(merged(yaml.safe_load(path.read_text()), said)))
    with pytest.raises(InputError, match=rf"{name.replace('.', '[.]')}: {key} would run code"):
        read_model(folder)


def test_keys_about_code_are_not_carried_on(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "model", trust_remote_code="")
    said = yaml.safe_load((folder / "config.yaml").read_text())
    said["llm_conf"]["load_kwargs"] = {"trust_remote_code": False, "dtype": "float32"}
    (folder / "config.yaml").write_text(yaml.safe_dump(said | {"trust_remote_code": False, "remote_code": None}))
    (tmp_path / "trained").mkdir()
    write_model_files(read_model(folder), {}, "model.pt", tmp_path / "trained")
    for name in ("config.yaml", "configuration.json"):
        assert "remote_code" not in (tmp_path / "trained" / name).read_text()
    assert read_model_conf(tmp_path / "trained")["llm_conf"]["load_kwargs"] == {"dtype": "float32"}


def read_model_conf(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_language_model_and_a_tokenizer_from_elsewhere_are_copied(tmp_path: Path) -> None:
    first = read_model(model_directory(tmp_path / "model"))
    for name in ("llm", "words"):
        (tmp_path / name / "Qwen3").mkdir(parents=True)
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / name / "Qwen3" / file).write_text(json.dumps({"of": name}))
    conf = {
        "llm_conf": {"init_param_path": str(tmp_path / "llm/Qwen3")},
        "tokenizer_conf": {"init_param_path": str(tmp_path / "words/Qwen3")},
    }
    trained = tmp_path / "trained"
    trained.mkdir()
    write_model_files(first, conf, "model.pt", trained)
    said = read_model_conf(trained)
    for section_name, name in (("llm_conf", "llm"), ("tokenizer_conf", "words")):
        copied = trained / said[section_name]["init_param_path"]
        assert json.loads((copied / "tokenizer.json").read_text()) == {"of": name}


@pytest.mark.parametrize(
    ("model_dir", "told"),
    [
        (None, "model_dir is not set; give the folder.*FunAudioLLM/Fun-ASR-Nano-2512"),
        ("/nowhere/Fun-ASR-Nano", "/nowhere/Fun-ASR-Nano: there is no such model directory"),
        ("one/two/three", "there is no such model directory"),
    ],
)
def test_a_model_that_is_not_there_is_told(model_dir: str | None, told: str) -> None:
    with pytest.raises((ConfigError, InputError), match=told):
        find_model(model_dir, Path("no/python"))


def test_doctor_names_a_model_that_is_not_set(tmp_path: Path) -> None:
    config = yaml.safe_load((REPO / "config.yaml").read_text(encoding="utf-8"))
    config["train"]["backends"] = ["retriever", "funasr_nano"]
    told = {finding.text: finding.verdict.name for finding in run_checks.models(config)}
    assert told["funasr_nano.model_dir is not set, and train.backends names funasr_nano"] == "PROBLEM"
    config["funasr_nano"]["model_dir"] = str(model_directory(tmp_path / "model"))
    told = {finding.text: finding.verdict.name for finding in run_checks.models(config)}
    assert told[f"funasr_nano.model_dir: {tmp_path / 'model'}, a folder"] == "OK"


def test_a_hub_id_may_name_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(python: Path, module: str, job: dict[str, Any]) -> None:
        asked.append((module, job["hub_id"], job["revision"]))
        Path(job["result"]).write_text(str(model_directory(tmp_path / str(len(asked)))))

    monkeypatch.setattr("earmark.funasr_nano.environment.run", fetch)
    find_model("FunAudioLLM/Fun-ASR-Nano-2512@v1.0", Path("python"))
    find_model("FunAudioLLM/Fun-ASR-Nano-2512", Path("python"))
    assert asked == [("fetch", "FunAudioLLM/Fun-ASR-Nano-2512", revision) for revision in ("v1.0", None)]


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "model")
    (folder / "config.yaml").write_text("model: SenseVoiceSmall\n")
    with pytest.raises(InputError, match=r"config\.yaml: model is 'SenseVoiceSmall'; expected FunASRNano"):
        read_model(folder)
