"""The lines that Fun-ASR-Nano is trained on, against what the installed FunASR takes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earmark.artifacts import rejected_path
from earmark.errors import ConfigError, InputError, TooManyRejectedError
from earmark.funasr_nano.lines import DROPPED_BY_FUNASR, Limits, prepare_lines

CONF = {"dataset": "FunASR", "dataset_conf": {"index_ds": "FunASR", "batch_type": "example"}}


def _wav(path: Path, seconds: float, rate: int = 16_000) -> str:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return str(path)


def _chatml(wav: str, text: str = "two words", prompt: str = "语音转写：", **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": f"{prompt}<|startofspeech|>!{wav}<|endofspeech|>"},
        {"role": "assistant", "content": text},
    ]
    return {"messages": messages, **more}


def _write(path: Path, lines: list[Any]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n")
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _reasons(destination: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in _rows(rejected_path(destination))}


def _prepare(tmp_path: Path, lines: list[Any], limits: Limits | None = None) -> tuple[Any, Path]:
    destination = tmp_path / "prepared" / "train.jsonl"
    source = _write(tmp_path / "lines.jsonl", lines)
    report = prepare_lines(source, destination, limits=limits or Limits(), max_rejected_fraction=1.0)
    return report, destination


def test_both_kinds_of_lines_become_chatml_with_both_lengths(tmp_path: Path) -> None:
    wav = _wav(tmp_path / "a.wav", 1.2)
    other_rate = _wav(tmp_path / "b.wav", 0.5, rate=44_100)
    report, destination = _prepare(
        tmp_path,
        [
            _chatml(wav, speech_length=118, text_length=2, hotwords=["words"]),
            {"key": "old", "source": other_rate, "target": "two words", "source_len": 48, "target_len": 2},
            "",
            _chatml(wav),
        ],
    )
    first, old, bare = _rows(destination)
    assert first == _chatml(wav, speech_length=118, text_length=2, hotwords=["words"])
    assert old == _chatml(other_rate, key="old", speech_length=48, text_length=2)
    assert bare == _chatml(wav, speech_length=118, text_length=2)
    assert (report.input, report.kept, report.converted, report.measured) == (3, 3, 1, 2)
    assert report.hours == pytest.approx((1.2 + 0.5 + 1.2) / 3600)
    assert report.longest_s == pytest.approx(1.2)
    assert not _rows(rejected_path(destination))


@pytest.mark.parametrize(
    ("stated", "unit"),
    [(1200, "milliseconds"), (20, "60 ms frames"), (1, "seconds"), (19200, "samples at 16 kHz"), (60, "20 ms frames")],
)
def test_a_length_in_other_units_is_rejected_by_the_unit_s_name(tmp_path: Path, stated: int, unit: str) -> None:
    good, bad = (_chatml(_wav(tmp_path / f"{name}.wav", 1.2), key=name, text_length=2) for name in ("good", "bad"))
    _, destination = _prepare(tmp_path, [{**good, "speech_length": 119}, {**bad, "speech_length": stated}])
    assert [row["key"] for row in _rows(destination)] == ["good"]
    (rejected,) = _rows(rejected_path(destination))
    assert (rejected["id"], rejected["reason"]) == ("bad", "wrong_speech_length")
    told = f"speech_length is {stated}, but the audio has 118 frames of 10 ms; it looks like {unit}"
    assert rejected["detail"] == f"{tmp_path}/lines.jsonl:2: {told}"


def test_what_is_no_usable_line_is_rejected_with_its_reason(tmp_path: Path) -> None:
    wav = _wav(tmp_path / "a.wav", 1.2)
    system, user, assistant = _chatml(wav)["messages"]
    two = {"role": "user", "content": user["content"] * 2}
    none = {"role": "user", "content": f"语音转写：{wav}"}
    lines = {
        "not_json": ['{"messages": [', "[1]", '{"messages": "\\ud800"}'],
        "bad_messages": [
            {"key": "a", "wav": wav, "txt": "two words"},
            {"messages": [system, assistant, user]},
            {"messages": [system, user, assistant, user, assistant]},
            {"messages": [system, user, {"role": "assistant"}]},
            {"messages": "none"},
            {"source": 3, "target": "two words"},
        ],
        "not_one_audio": [{"messages": [system, two, assistant]}, {"messages": [system, none, assistant]}],
        "relative_path": [_chatml("a.wav"), _chatml("https://example.org/a.wav")],
        "no_audio_file": [_chatml("/no/such.wav")],
        "unreadable_audio": [_chatml(str(_write(tmp_path / "text.wav", ["no audio"])))],
        "no_text": [_chatml(wav, "  "), {"source": wav, "target": ""}],
        "holds_mark": [_chatml(wav, "words<|im_end|>"), {"source": f"{wav}<|endofspeech|>", "target": "two words"}],
        "bad_length": [_chatml(wav, speech_length="118"), _chatml(wav, text_length=[2])],
    }
    every = [(reason, line) for reason, some in lines.items() for line in some]
    report, destination = _prepare(tmp_path, [_chatml(wav), *(line for _, line in every)])
    found = _rows(rejected_path(destination))
    assert [row["reason"] for row in found] == [reason for reason, _ in every]
    assert [row["id"] for row in found][1:3] == ["lines.jsonl:3", "lines.jsonl:4"]
    assert (report.kept, report.rejected) == (1, len(every))
    assert report.as_dict()["reasons"] == {reason: len(some) for reason, some in sorted(lines.items())}


def test_a_file_without_a_usable_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no line"):
        _prepare(tmp_path, [""])
    with pytest.raises(InputError, match=r"none of its 2 lines can be trained on \(no_audio_file 2\)"):
        _prepare(tmp_path, [_chatml("/no/such.wav"), _chatml("/nor/this.wav")])
    assert not (tmp_path / "prepared/train.jsonl").exists()
    lines = _write(tmp_path / "lines.jsonl", [_chatml(_wav(tmp_path / "a.wav", 1.0)), _chatml("/no/such.wav")])
    with pytest.raises(TooManyRejectedError, match="1 of 2 lines were rejected"):
        prepare_lines(lines, tmp_path / "train.jsonl", limits=Limits(), max_rejected_fraction=0.4)


def test_another_dataset_s_rules_are_not_guessed() -> None:
    with pytest.raises(ConfigError, match="dataset is 'OpenAIDataset'"):
        Limits.of({**CONF, "dataset": "OpenAIDataset"})
    with pytest.raises(ConfigError, match=r"dataset_conf\.index_ds is None"):
        Limits.of({"dataset": "FunASR", "dataset_conf": {}})
    for wrong in ({"batch_size": None}, {"max_token_length": "3500"}, {"sort_size": True}):
        (key, value), *_ = wrong.items()
        with pytest.raises(ConfigError, match=rf"dataset_conf\.{key} is {value!r}; expected a number"):
            Limits.of({**CONF, "dataset_conf": {**CONF["dataset_conf"], **wrong}})
    with pytest.raises(ConfigError, match=r"frontend_conf\.lfr_n is None"):
        Limits.of({**CONF, "frontend_conf": {"lfr_n": None}})


# Configurations of FunASR's dataset, and what each of them drops of the lines of `every_kind`.
CASES = {
    "by lines": ({"batch_type": "example", "batch_size": 3}, {"short", "no_length", "long prompt"}),
    "by lines, limited": (
        {"batch_type": "example", "batch_size": 2, "max_token_length": 125, "length_scale_source": 2.0},
        {"short", "no_length", "3 s", "4 s", "21 s", "long prompt"},
    ),
    "by tokens": ({"batch_type": "token", "batch_size": 3000}, {"short", "no_length", "21 s", "long prompt"}),
    "by tokens, sorted": (
        {
            "batch_type": "token", "batch_size": 700, "sort_size": 4, "max_token_length": 310, "do_think": False,
            "max_source_length": 1000, "max_target_length": 20,
        },
        {"short", "no_length", "4 s", "21 s", "long prompt", "long text"},
    ),
    "by tokens, unlike the default": (
        {
            "batch_type": "token", "batch_size": 5000, "sort_size": 1024, "max_token_length": 5000,
            "max_source_length": 200, "min_source_length": 90, "sys_prompt": False,
        },
        {"short", "no_length", "half a second", "3 s", "4 s", "21 s"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Lines that FunASR's limits are about, by their key: all lengths are true."""
    folder = tmp_path_factory.mktemp("every_kind")
    seconds = {"short": 0.1, "half a second": 0.5, "1 s": 1.0, "3 s": 3.0, "4 s": 4.0, "21 s": 21.0, "at 8 kHz": 1.5}
    lines = {
        key: _chatml(_wav(folder / f"{key}.wav", length, 8_000 if "kHz" in key else 16_000), key=key)
        for key, length in seconds.items()
    }
    lines["no_length"] = _chatml(_wav(folder / "no_length.wav", 1.0), key="no_length", speech_length=98, text_length=0)
    lines["long prompt"] = _chatml(_wav(folder / "p.wav", 1.0), prompt="语音" * 300, key="long prompt")
    lines["long text"] = _chatml(_wav(folder / "t.wav", 1.0), "many " * 40, key="long text")
    return lines


@pytest.fixture(scope="module")
def funasr_takes(
    every_kind: dict[str, dict[str, Any]],
    funasr_python: Path,
    tiny_fun_asr_nano: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[str, Any]]:
    """funasr_takes(case): our report, our prepared file, and what FunASR does with all lines and with those we kept."""
    folder = tmp_path_factory.mktemp("funasr_takes")
    tokenizer = str(tiny_fun_asr_nano / "Qwen3-0.6B")

    # FunASR counts no lengths: all lines get their own, by a preparation without limits.
    loose = Limits(0, 10**6, 10**6, 10**6, None, 10**6, tokenizer=tokenizer)
    measured = [line for key, line in every_kind.items() if key != "no_length"]
    whole = folder / "whole.jsonl"
    prepare_lines(_write(folder / "measured.jsonl", measured), whole, limits=loose, max_rejected_fraction=0.0)
    gone = _chatml("/no/such.wav", key="gone", speech_length=98, text_length=2)
    with whole.open("a", encoding="utf-8") as file:
        for line in ("{broken", *(json.dumps(row, ensure_ascii=False) for row in (every_kind["no_length"], gone))):
            file.write(line + "\n")
    source = _write(folder / "lines.jsonl", list(every_kind.values()))

    def cases() -> Iterator[tuple[str, dict[str, Any], Any]]:
        for name, (conf, _) in CASES.items():
            roomy = {"index_ds": "FunASR", "batch_size_token_max": 10**6, **conf}
            limits = Limits.of({**CONF, "dataset_conf": roomy}, tokenizer=tokenizer)
            prepared = folder / name / "train.jsonl"
            report = prepare_lines(source, prepared, limits=limits, max_rejected_fraction=1.0)
            conf = {"index_ds": "FunASR", "batch_size_token_max": report.longest_batch_tokens, "num_workers": 0, **conf}
            for lines in (whole, prepared):
                yield name, {"lines": str(lines), "tokenizer": tokenizer, "dataset_conf": conf}, report

    asked = list(cases())
    narrow = {**asked[-1][1], "dataset_conf": {**asked[-1][1]["dataset_conf"], "batch_size_token_max": 100}}
    (folder / "cases.json").write_text(json.dumps([narrow, *(case for _, case, _ in asked)]), encoding="utf-8")
    script = Path(__file__).with_name("funasr_dataset.py")
    command = [str(funasr_python), str(script), str(folder / "cases.json"), str(folder / "answers.json")]
    subprocess.run(command, check=True, timeout=300)
    of_narrow, *answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert any(taken < given for given, taken in of_narrow["batches"]), "FunASR took no line off a batch"
    of_all, of_kept = answers[::2], answers[1::2]
    reports = [report for _, _, report in asked[::2]]
    found = dict(zip(CASES, zip(reports, of_all, of_kept, strict=True), strict=True))
    return lambda name: {
        "report": found[name][0],
        "all": found[name][1],
        "kept": found[name][2],
        "folder": folder / name,
    }


@pytest.mark.parametrize("case", CASES)
def test_what_funasr_would_drop_is_rejected_and_nothing_else(
    funasr_takes: Callable[[str], dict[str, Any]], every_kind: dict[str, dict[str, Any]], case: str
) -> None:
    found = funasr_takes(case)
    dropped = CASES[case][1]
    prepared = _rows(found["folder"] / "train.jsonl")
    assert {row["key"] for row in prepared} == every_kind.keys() - dropped
    reasons = _reasons(found["folder"] / "train.jsonl")
    assert reasons.keys() == dropped
    assert set(reasons.values()) <= set(DROPPED_BY_FUNASR)
    # FunASR itself, given every line: it passes over the same, and over a broken line and audio that is not there.
    assert set(found["all"]["kept"]) == every_kind.keys() - dropped
    assert set(found["kept"]["kept"]) == every_kind.keys() - dropped
    # Its collator takes lines off a batch that holds too many tokens; up to the bound in the report, it does not.
    assert all(given == taken for given, taken in found["kept"]["batches"])


def test_the_report_bounds_what_a_batch_can_hold(funasr_takes: Callable[[str], dict[str, Any]]) -> None:
    assert funasr_takes("by lines")["report"].longest_batch_tokens == 0
    report = funasr_takes("by tokens")["report"]
    # 2500 is what FunASR allows unless told otherwise: 3000 frames of half a second each would lose lines.
    assert report.longest_batch_tokens > 2500 > report.longest_tokens


def test_a_batch_that_funasr_would_take_lines_off_is_an_error(tmp_path: Path) -> None:
    data = {"index_ds": "FunASR", "batch_type": "token", "batch_size": 6000}
    lines = [_chatml(_wav(tmp_path / "a.wav", 0.3))]
    limits = Limits.of({"dataset": "FunASR", "dataset_conf": data})
    with pytest.raises(ConfigError, match=r"token_max is 2500, but with batch_size 6000 .* may hold \d+ tokens"):
        _prepare(tmp_path, lines, limits)
    report, _ = _prepare(tmp_path, lines, Limits.of({"dataset": "FunASR", "dataset_conf": {**data, "batch_size": 60}}))
    assert report.kept == 1
