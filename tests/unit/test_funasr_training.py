"""Fine-tuning a tiny Fun-ASR-Nano by the command line, from lines to a model directory."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml
from funasr_model import PYTHON, REPO, tiny_model, write_lines

from earmark.cli import main
from earmark.errors import InputError
from earmark.funasr_nano.model_folder import read_model
from earmark.funasr_nano.train import _KEY, _begin, _finish, train_funasr_nano


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_lines(folder, "train", 10)
    write_lines(folder, "dev", 3)
    assert command(tiny, folder) == 0
    return folder / "models/funasr_nano"


def command(model: Path, folder: Path, *flags: str) -> int:
    """The status of `earmark funasr train` in a folder with lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            sys, "argv",
            ["earmark", "funasr", "train", "--model_dir", str(model), "--output_dir", "models/funasr_nano",
             "--train_data", "train.jsonl", "--valid_data", "dev.jsonl",
             "--batch_size", "500", "--max_epoch", "2", "--learning_rate", "0.01", "--seed", "3",
             "--set", "scheduler_conf.warmup_steps=4", "--set", "train_conf.log_interval=1",
             "--set", "train_conf.validate_interval=2", "--set", "dataset_conf.num_workers=1",
             "--conf", str(REPO / "conf/train_funasr_nano.yaml"), "--python", str(PYTHON), *flags],
        )  # fmt: skip
        return main()


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_adapters_learn_and_everything_else_stays_bit_by_bit(trained: Path, tiny: Path) -> None:
    before, after = weights(tiny / "model.pt"), weights(trained / "model.pt.best")
    adapters = after.keys() - before.keys()
    assert adapters == {
        f"llm.model.layers.{layer}.self_attn.{target}.lora_{side}"
        for layer in range(2)
        for target in ("q_proj", "v_proj")
        for side in "AB"
    }
    assert all(after[name].count_nonzero() for name in adapters)  # lora_B begins at zero
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_note_says_which_file_to_use_and_the_folder_is_a_model_directory_that_uses_it(trained: Path) -> None:
    which = json.loads((trained / "which_model.json").read_text(encoding="utf-8"))
    assert which["use"] == "model.pt.best"
    assert which["sha256"] == hashlib.sha256((trained / "model.pt.best").read_bytes()).hexdigest()
    assert which["checkpoints"] == ["model.pt.ep1", "model.pt.ep2"]
    assert (trained / which["averaged"]).is_file()
    assert torch.equal(
        *(weights(trained / name)["llm.lm_head.weight"] for name in (which["checkpoint"], "model.pt.best"))
    )
    model = read_model(trained)
    assert model.with_paths()["init_param"] == str(trained / "model.pt.best")
    assert model.conf["llm_conf"]["use_lora"] is True
    assert not [path for path in yaml.safe_dump(model.conf).split() if path.startswith("/")]
    assert sorted(path.name for path in trained.parent.iterdir()) == ["funasr_nano"]


def test_what_trains_is_written_down(trained: Path) -> None:
    audit = json.loads((trained / "audit.json").read_text(encoding="utf-8"))
    assert {name: part["trainable"] for name, part in audit["parts"].items() if part["trainable"]} == {
        "lora": audit["trainable"]
    }
    assert audit["parts"]["lora"]["trainable_dtypes"] == ["float32"]
    size = (trained / "model.pt.best").stat().st_size
    assert audit["checkpoint"] == {"bytes": size, "files": {"model.pt.best": size}}


def test_metrics_log_and_used_configuration_are_kept(trained: Path) -> None:
    metrics = [json.loads(line) for line in (trained / "train_metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in metrics if "loss" in line]
    dev = [line for line in metrics if "eval_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    n_batches = len(steps) / 2  # of an epoch
    assert n_batches > 2
    assert all(line["epoch"] == round(line["step"] / n_batches, 4) for line in metrics)
    assert [line["epoch"] for line in dev if line["epoch"] == int(line["epoch"])] == [1, 2]
    assert {2, n_batches + 2} <= {line["step"] for line in dev}
    assert [line["step"] for line in dev][-1] == len(steps)
    assert steps[-1]["epoch"] == 2.0
    assert all(line["loss"] > 0 and 0 <= line["acc"] <= 1 and line["learning_rate"] > 0 for line in steps)
    config = yaml.safe_load((trained / "train_config.yaml").read_text(encoding="utf-8"))
    assert config["dataset_conf"]["batch_size"] == 500
    assert config["optim_conf"]["lr"] == 0.01
    assert config["train_conf"]["keep_nbest_models"] == 5  # as conf/train_funasr_nano.yaml says
    assert config["output_dir"] == str(trained)
    assert config["train_data_set_list"] == str(trained.parents[1] / "train.jsonl")
    assert config["valid_data_set_list"] == str(trained.parents[1] / "dev.jsonl")
    log = (trained / "train.log").read_text(encoding="utf-8")
    assert "parameters that train: " in log
    assert "use model.pt.best" in log
    assert "smoke transcription of dev0.wav" in log


def test_a_trained_model_is_not_replaced_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = tmp_path / "models/funasr_nano/which_model.json"
    note.parent.mkdir(parents=True)
    note.write_text("{}")
    nowhere = tmp_path / "nowhere"
    assert command(nowhere, tmp_path) != 0
    assert "models/funasr_nano: holds a trained model already; give another" in capsys.readouterr().err
    assert command(nowhere, tmp_path, "--overwrite") != 0
    assert f"{nowhere}: there is no such model directory" in capsys.readouterr().err  # so it went on
    assert note.exists()


def test_a_kill_while_the_work_becomes_the_output_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, output = tmp_path / ".out.training", tmp_path / "out"
    _begin(work, "one", resume=True)
    (work / "model.pt").write_bytes(b"checkpoint")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        _finish(work, output, {}, tmp_path / "train.jsonl", tmp_path / "dev.jsonl")
    _begin(work, "one", resume=True)
    assert (work / "model.pt").exists()
    _finish(work, output, {}, tmp_path / "train.jsonl", tmp_path / "dev.jsonl")
    assert sorted(path.name for path in output.iterdir()) == ["model.pt", "train_config.yaml"]
    assert _KEY not in {path.name for path in tmp_path.iterdir()}


def test_lines_of_the_older_form_are_converted_and_accounted_for(trained: Path) -> None:
    report = json.loads((trained / "data_report.json").read_text(encoding="utf-8"))
    assert (report["train"]["kept"], report["train"]["converted"], report["dev"]["kept"]) == (10, 10, 3)


def test_work_is_resumed_for_the_same_training_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = tmp_path / ".funasr_nano.training"
    _begin(work, "one", resume=True)
    (work / "model.pt").write_bytes(b"checkpoint")
    _begin(work, "one", resume=True)
    assert (work / "model.pt").exists()
    with caplog.at_level(logging.INFO):
        _begin(work, "two", resume=True)
    assert not (work / "model.pt").exists()
    assert "work of another configuration" in caplog.text
    (work / "model.pt").write_bytes(b"checkpoint")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        _begin(work, "two", resume=False)
    assert not (work / "model.pt").exists()
    assert "train_conf.resume is false; removed" in caplog.text


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\end{document}")
    section = {"model_dir": None, "python": "python", "conf": "conf.yaml"}
    with pytest.raises(InputError, match="holds something else than a trained Fun-ASR-Nano"):
        train_funasr_nano(
            section, train_lines=tmp_path / "train.jsonl", dev_lines=tmp_path / "dev.jsonl", output=tmp_path,
            processes=1, threads=1, seed=0, max_rejected_fraction=0.1,
        )  # fmt: skip
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(InputError, match=r"thesis\.tex: is a file"):
        train_funasr_nano(
            section, train_lines=tmp_path / "train.jsonl", dev_lines=tmp_path / "dev.jsonl",
            output=tmp_path / "thesis.tex", processes=1, threads=1, seed=0, max_rejected_fraction=0.1,
        )  # fmt: skip
