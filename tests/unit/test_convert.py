import json
import subprocess
import sys
from pathlib import Path

import pytest

from earmark.artifacts import rejected_path
from earmark.errors import InputError, TooManyRejectedError
from earmark.export.convert import convert
from earmark.export.formats import FORMATS, LENGTHS, line_problem


@pytest.fixture
def listed(tmp_path, write_wav):
    """Two lines of one second each, and the folder they lie in."""
    write_wav("a.wav", seconds=1.0)
    write_wav("sub/b.wav", seconds=1.0, rate=8000)
    rows = [{"key": "a", "wav": "a.wav", "txt": "hello there"}, {"key": "b", "wav": "sub/b.wav", "txt": "你好世界"}]
    return write_lines(tmp_path / "in.jsonl", rows)


def write_lines(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def converted(source, **changes):
    output = source.with_name("out.jsonl")
    settings = {
        "format": "funasr_nano", "calculate_lengths": True, "tokenizer": "bundled:qwen", "prompt": "Write it down.",
        "audio_root": None, "max_rejected_fraction": 0.9,
    }  # fmt: skip
    convert(source, output, **settings | changes)
    rejected = [json.loads(line) for line in rejected_path(output).read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], rejected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lengths", [True, False])
def test_every_line_is_valid_in_its_format_with_and_without_lengths(listed, format, lengths):
    lines, rejected = converted(listed, format=format, calculate_lengths=lengths)
    assert (len(lines), rejected) == (2, [])
    assert [line_problem(format, line, with_lengths=lengths) for line in lines] == [None, None]
    held = {name for line in lines for name in line} & {"speech_length", "text_length", "source_len", "target_len"}
    assert held == (set(LENGTHS.get(format, ())) if lengths else set())


def test_lengths_are_in_their_units(listed):
    [english, chinese], _ = converted(listed)
    assert (english["speech_length"], english["text_length"]) == (98, 2)  # (1000 - 25) // 10 + 1 frames; tokens
    [english, chinese], _ = converted(listed, format="funasr")
    assert (english["target_len"], chinese["target_len"]) == (2, 4)  # words; characters
    assert chinese["source_len"] == 98


def test_relative_paths_start_at_the_input_or_at_the_audio_root(listed, tmp_path):
    lines, _ = converted(listed, format="flat")
    assert [line["audio"] for line in lines] == [str(tmp_path / "a.wav"), str(tmp_path / "sub/b.wav")]
    rooted, _ = converted(listed, format="flat", calculate_lengths=False, audio_root=tmp_path / "x/..")
    assert rooted == lines


def test_funasrs_own_lines_and_flat_ones_are_read(tmp_path):
    rows = [{"key": "k", "source": "/x.wav", "target": "one"}, {"audio": "/y.wav", "text": "two", "prompt": "p"}]
    lines, _ = converted(write_lines(tmp_path / "in.jsonl", rows), format="funasr", calculate_lengths=False)
    assert lines == [
        {"key": "k", "source": "/x.wav", "target": "one"},
        {"key": "/y.wav", "source": "/y.wav", "target": "two"},
    ]


def test_bad_lines_are_rejected_with_their_line_and_the_good_ones_written(listed):
    good = listed.read_text(encoding="utf-8").splitlines()
    bad = [
        '{"key": "cut", "wav": "a.w', "[1]", {"key": "n", "wav": "a.wav"}, {"key": "b", "wav": "a.wav", "txt": " "},
        {"key": "l", "wav": ["a.wav"], "txt": "x"}, {"key": "g", "wav": "gone.wav", "txt": "x"},
        {"key": "w", "txt": "x"},
        '{"key": "s", "wav": "a.wav", "txt": "\\ud800"}', {"key": "t", "wav": "in.jsonl", "txt": "x"},
    ]  # fmt: skip
    lines, rejected = converted(write_lines(listed, [*good, *bad]))
    assert len(lines) == 2
    assert [(row["id"], row["reason"]) for row in rejected] == [
        ("", "broken_line"), ("", "broken_line"), ("n", "no_text"), ("b", "no_text"), ("", "broken_line"),
        ("g", "unreadable_audio"), ("w", "broken_line"), ("", "broken_line"), ("t", "unreadable_audio"),
    ]  # fmt: skip
    assert all(row["detail"].startswith(f"{listed}:{number}: ") for number, row in enumerate(rejected, start=3))


def test_too_many_bad_lines_leave_no_output(listed, tmp_path):
    write_lines(listed, [listed.read_text(encoding="utf-8").splitlines()[0], *["broken"] * 5])
    with pytest.raises(TooManyRejectedError, match="5 of 6 lines"):
        converted(listed, max_rejected_fraction=0.1)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_input_is_never_overwritten_and_an_empty_one_is_refused(listed, tmp_path):
    before = listed.read_bytes()
    with pytest.raises(InputError, match="is the input as well"):
        converted(listed.rename(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="holds no line"):
        converted(write_lines(tmp_path / "empty.jsonl", ["", " "]))


def test_the_command_says_what_is_wrong_in_one_line(listed, tmp_path):
    earmark = Path(sys.executable).with_name("earmark")
    command = [earmark, "convert", "--input", listed, "--output", tmp_path / "o"]
    done = subprocess.run([*command, "--tokenizer", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is neither a model folder nor a reachable hub id" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--no-calculate-lengths"], capture_output=True, text=True, check=False)
    assert (done.returncode, len((tmp_path / "o").read_text(encoding="utf-8").splitlines())) == (0, 2)


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("funasr", {"key": " ", "wav": "a.wav", "txt": "hello"}, "not_exportable"),
        ("funasr_nano", {"key": "k", "wav": "/", "txt": "hello"}, "not_exportable"),
        ("funasr_nano", {"key": "k", "wav": "a<|endofspeech|>.wav", "txt": "hello"}, "holds_mark"),
        ("conversation", {"key": "k", "wav": "a</audio> say hi.wav", "txt": "hello"}, "holds_mark"),
        ("flat", {"key": "k", "wav": "a.wav", "txt": "hello <|im_end|>"}, "holds_mark"),
    ],
)
def test_one_line_that_no_format_can_hold_costs_that_line_alone(listed, format, row, reason):
    source = write_lines(listed, [json.dumps(row), json.dumps({"key": "b", "wav": "a.wav", "txt": "hello there"})])
    lines, rejected = converted(source, format=format, calculate_lengths=False)
    assert (len(lines), [line["reason"] for line in rejected]) == (1, [reason])
