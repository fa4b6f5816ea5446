"""What a Fun-ASR-Nano transcribes, in FunASR's environment, against FunASR's own inference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import earmark
from earmark.artifacts import ANSWERS
from earmark.errors import EarmarkError, InputError, TooManyRejectedError
from earmark.funasr_nano.transcribe import smoke_transcription, transcribe_split

SECONDS = {"a": 0.4, "b": 3.0, "c": 1.0, "d": 2.1, "empty": 0.0}
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def model(tiny_fun_asr_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a training leaves one: its weights have a name of their own, which the note gives."""
    folder = tmp_path_factory.mktemp("models") / "funasr_nano"
    shutil.copytree(tiny_fun_asr_nano, folder)
    (folder / "model.pt").rename(folder / "model.pt.avg2")
    (folder / "which_model.json").write_text('{"use": "model.pt.avg2"}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line of either kind about each of SECONDS, and two that cannot be asked."""
    folder = tmp_path_factory.mktemp("lines")
    rows: list[dict[str, Any]] = []
    for number, (name, seconds) in enumerate(SECONDS.items()):
        noise = np.random.default_rng(number).normal(0, 0.1, round(16_000 * seconds))
        soundfile.write(folder / f"{name}.wav", noise, 16_000)
        rows.append({"key": name, "source": str(folder / f"{name}.wav"), "target": "two words"})
    user = {"role": "user", "content": f"语音转写：<|startofspeech|>!{folder}/b.wav<|endofspeech|>"}
    rows[1] = {"messages": [user, {"role": "assistant", "content": "two words"}]}
    rows.insert(2, {"key": "gone", "source": str(folder / "gone.wav"), "target": "two words"})
    rows.insert(3, {"key": "no audio"})
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_batches_say_what_funasr_says_of_each_and_failures_are_rejected(
    model: Path, lines: Path, funasr_python: Path, tiny_fun_asr_nano: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers/funasr_nano/test.parquet"
    transcribe_split(
        model, lines, output, python=funasr_python, max_new_tokens=NEW_TOKENS, batch_size=3, threads=1,
        max_rejected_fraction=0.5,
    )  # fmt: skip
    table = pq.read_table(output)
    assert table.schema.equals(ANSWERS)
    assert table["chunk_id"].to_pylist() == ["a", "b", "c", "d"]
    assert min(table["seconds"].to_pylist()) > 0
    # A random model comes to no end by itself.
    assert table["finished"].to_pylist() == [False] * 4
    rejected = [json.loads(line) for line in output.with_name("test.rejected.jsonl").open(encoding="utf-8")]
    assert {row["reason"]: Path(row["id"]).name for row in rejected} == {
        "bad_audio": "test.jsonl:3",
        "bad_messages": "test.jsonl:4",
        "not_transcribed": "empty",
    }
    job = {
        "model_dir": str(tiny_fun_asr_nano), "audio": [str(lines.parent / f"{name}.wav") for name in "abcd"],
        "max_new_tokens": NEW_TOKENS, "texts": str(tmp_path / "texts.json"),
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    script = Path(__file__).with_name("funasr_transcripts.py")
    subprocess.run([str(funasr_python), str(script), str(tmp_path / "job.json")], check=True, timeout=300)
    texts = json.loads((tmp_path / "texts.json").read_text(encoding="utf-8"))
    assert table["text"].to_pylist() == [text.strip() for text in texts]
    assert len(set(texts)) == 4


def test_a_transcript_that_ends_by_itself_is_finished(
    model: Path, lines: Path, funasr_python: Path, tmp_path: Path
) -> None:
    ending = tmp_path / "model"
    shutil.copytree(model, ending)
    config = ending / "Qwen3-0.6B/config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    # Whatever it says first is an end.
    settings["eos_token_id"] = list(range(settings["vocab_size"]))
    config.write_text(json.dumps(settings), encoding="utf-8")
    one = tmp_path / "one.jsonl"
    one.write_text(lines.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    transcribe_split(
        ending, one, tmp_path / "one.parquet", python=funasr_python, max_new_tokens=NEW_TOKENS, batch_size=1,
        threads=1, max_rejected_fraction=0.0,
    )  # fmt: skip
    (row,) = pq.read_table(tmp_path / "one.parquet").to_pylist()
    assert (row["chunk_id"], row["finished"]) == ("a", True)


def test_weights_of_another_configuration_are_refused(
    model: Path, lines: Path, funasr_python: Path, tmp_path: Path
) -> None:
    weights = torch.load(model / "model.pt.avg2", weights_only=True)
    lost = [name for name in weights["state_dict"] if name.startswith("audio_adaptor.")]
    for name in lost:
        del weights["state_dict"][name]
    torch.save(weights, tmp_path / "half.pt")
    with pytest.raises(EarmarkError, match=rf"half\.pt: lacks {len(lost)} of the model's .*audio_adaptor\."):
        smoke_transcription(model, lines, python=funasr_python, weights=tmp_path / "half.pt")


def test_code_that_a_model_brings_does_not_run(model: Path, lines: Path, funasr_python: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(model, evil)
    (evil / "run.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n", encoding="utf-8")
    config = evil / "config.yaml"
    said = config.read_text(encoding="utf-8")
    config.write_text(said + f"trust_remote_code: true\nremote_code: {evil / 'run.py'}\n", encoding="utf-8")
    with pytest.raises(EarmarkError, match="trust_remote_code, remote_code: would run code"):
        smoke_transcription(evil, lines, python=funasr_python)
    assert not (tmp_path / "marker").exists()


def test_an_error_that_breaks_the_gpu_ends_the_program_and_too_little_memory_does_not(funasr_python: Path) -> None:
    program = (
        "import torch\nfrom earmark.errors import EarmarkError\n"
        "from earmark.funasr_nano.inside.transcribe import _raise_if_poisoned\n"
        "_raise_if_poisoned(torch.OutOfMemoryError('CUDA out of memory'))\n"
        "_raise_if_poisoned(ValueError('bad audio'))\n"
        "try:\n    _raise_if_poisoned(torch.AcceleratorError('CUDA error: device-side assert triggered'))\n"
        "except EarmarkError as error:\n    print(error)\n"
    )
    source = Path(earmark.__file__).parents[1]
    done = subprocess.run(
        [str(funasr_python), "-c", program], env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "the GPU failed (CUDA error: device-side assert triggered)" in done.stdout, done.stderr


def test_nothing_to_transcribe_and_too_much_that_cannot_be_are_errors(model: Path, lines: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"python": Path("/no/python"), "max_new_tokens": 1, "batch_size": 1, "threads": 1}
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="nothing to transcribe"):
        transcribe_split(model, empty, tmp_path / "a.parquet", max_rejected_fraction=1.0, **settings)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(lines.read_text(encoding="utf-8").splitlines()[2], encoding="utf-8")
    with pytest.raises(TooManyRejectedError, match="1 of 1 chunks were rejected"):
        transcribe_split(model, bad, tmp_path / "a.parquet", max_rejected_fraction=0.5, **settings)
    assert not (tmp_path / "a.parquet").exists()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/which_model.json").write_text('{"use": "model.pt.best"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.pt\.best: there is no such file, though which_model\.json names it"):
        smoke_transcription(tmp_path / "model", lines, python=Path("/no/python"))
