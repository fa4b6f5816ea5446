"""Trainers are told of packed wavs by the lines that name them, whatever other lines look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from earmark.errors import InputError
from earmark.packed_wavs import check_unpacked


def conversation(audio: Path) -> str:
    turns = [{"from": "user", "value": f"<audio>{audio}</audio> What?"}, {"from": "assistant", "value": "x"}]
    return json.dumps({"conversations": turns})


def chatml(audio: Path) -> str:
    said = f"语音转写：<|startofspeech|>!{audio}<|endofspeech|>"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "x"}]
    return json.dumps({"messages": turns}, ensure_ascii=False)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / 'wavs "ä"/0000'  # both are escaped in JSON
    folder.mkdir(parents=True)
    (folder / "wavs.tar").touch()
    return folder


@pytest.mark.parametrize("line", [conversation, chatml])
def test_packed_wavs_are_told_until_they_are_unpacked(
    packed: Path, tmp_path: Path, line: Callable[[Path], str]
) -> None:
    audio = packed / "a.wav"
    lines = tmp_path / "train.jsonl"
    lines.write_text(line(audio) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"wavs\.tar: the wavs that .* are packed .* unpack all 1 .*a\.wav"):
        check_unpacked([packed], lines)
    audio.touch()
    check_unpacked([packed], lines)
    audio.unlink()
    (packed / "wavs.tar").unlink()
    check_unpacked([packed], lines)  # missing, but not packed: another's to tell


def test_lines_that_cannot_be_read_hide_nothing(packed: Path, tmp_path: Path) -> None:
    lines = tmp_path / "train.jsonl"
    broken = [b"\xff{", b"", b'{"messages": 3}', b"<audio>\\q</audio>", b"[" * 3000]
    lines.write_bytes(b"\n".join([*broken, conversation(packed / "a.wav").encode()]) + b"\n")
    with pytest.raises(InputError, match="are packed"):
        check_unpacked([packed], lines)
    lines.write_bytes(b"\n".join(broken))  # whoever reads them says what is wrong
    check_unpacked([packed], lines)
    lines.write_bytes(b"")
    check_unpacked([packed], lines)


def test_wavs_of_which_some_are_unpacked_are_told(packed: Path, tmp_path: Path) -> None:
    names = [packed / f"{number}.wav" for number in range(200)]
    for name in names[:120]:
        name.touch()
    lines = tmp_path / "train.jsonl"
    lines.write_text("".join(conversation(name) + "\n" for name in names), encoding="utf-8")
    with pytest.raises(InputError, match="unpack all 1"):
        check_unpacked([packed], lines)
