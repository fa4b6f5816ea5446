"""A line that Fun-ASR-Nano is trained on or asked about: its parts, from either of two forms.

ChatML  {"messages": [{"role": "system", "content": "You are a helpful assistant."},
                      {"role": "user", "content": "语音转写：<|startofspeech|>!/a.wav<|endofspeech|>"},
                      {"role": "assistant", "content": "hello"}], "speech_length": 118, "text_length": 1}
older   {"key": "a", "source": "/a.wav", "target": "hello"}
"""  # noqa: RUF002 (the prompt's own colon)

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.errors import EarmarkError
from earmark.export.formats import SPEECH_PROMPT
from earmark.files import opened

_SYSTEM = "You are a helpful assistant."  # what FunASR says where a line has no system message
_SPEECH = re.compile(r"(?P<before>.*?)<\|startofspeech\|>!(?P<path>.+?)<\|endofspeech\|>(?P<after>.*)", re.DOTALL)
_MARK = re.compile(r"<\||\|>")  # of ChatML: text that holds one would be read as something else
_ROLES = (["system", "user", "assistant"], ["user", "assistant"])


class UnusableLine(EarmarkError):
    """A line that cannot be trained on. `reason` is a short fixed word; the message says where and what."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class SpokenLine:
    """A line's parts. Lengths are None where the line states none."""

    id: str
    system: str
    before: str  # of what the user says: the prompt
    audio: Path
    after: str
    text: str
    speech_length: int | None  # in 10 ms fbank frames
    text_length: int | None  # in tokens
    row: dict[str, Any]  # as ChatML
    converted: bool = False  # from the older form

    @property
    def question(self) -> list[dict[str, str]]:
        """The messages up to the answer; FunASR's inference, unlike its training, wants a system message."""
        user = self.row["messages"][-2]["content"]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def parsed_lines(source: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, parsed line) of each line that is not blank; what is no JSON comes as UnusableLine."""
    with opened(source) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{source.name}:{number}", _parsed(line)


def spoken_line(row_id: str, row: Any) -> SpokenLine:
    """The parts of a parsed line, ChatML or older; `row_id` is its id where it has no key. The audio is not looked at.

    UnusableLine if it is neither, or holds what FunASR would misread.
    """
    if isinstance(row, UnusableLine):
        raise row
    if not isinstance(row, dict):
        raise UnusableLine("not_json", f"the line is a {type(row).__name__}; expected an object")
    converted = "messages" not in row and "source" in row
    if converted:
        row = _as_chatml(row)
    if "messages" not in row:
        raise UnusableLine("bad_messages", "the line has neither messages nor source and target")
    system, user, text = _messages(row["messages"])
    if not text.strip():
        raise UnusableLine("no_text", "the assistant says nothing")
    found = _SPEECH.fullmatch(user)
    if user.count("<|startofspeech|>") != 1 or user.count("<|endofspeech|>") != 1 or found is None:
        raise UnusableLine(
            "not_one_audio", "the user's message must hold one <|startofspeech|>!/absolute/path<|endofspeech|>"
        )
    path = found["path"]
    if not path.startswith("/"):
        raise UnusableLine("relative_path", f"the audio {path!r} is no absolute path")
    if "\n" in path or "\0" in path:
        raise UnusableLine("not_one_audio", "the audio's path holds a line break or a NUL")
    for part in (system, found["before"], path, found["after"], text):
        if _MARK.search(part):
            raise UnusableLine("holds_mark", "a message holds <| or |> besides the marks around the audio's path")
    key = row.get("key")
    return SpokenLine(
        id=key if isinstance(key, str) and key else row_id,
        system=system,
        before=found["before"],
        audio=Path(path),
        after=found["after"],
        text=text,
        speech_length=_length(row, "speech_length"),
        text_length=_length(row, "text_length"),
        row=row,
        converted=converted,
    )


def _as_chatml(row: dict[str, Any]) -> dict[str, Any]:
    """An older line as ChatML, without its lengths, whose units differ."""
    source, target = row["source"], row.get("target")
    if not isinstance(source, str) or not isinstance(target, str):
        raise UnusableLine("bad_messages", "source and target must be text")
    if _MARK.search(source):
        raise UnusableLine("holds_mark", "source holds <| or |>")
    kept = {"key": row["key"]} if isinstance(row.get("key"), str) else {}
    return kept | {
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"{SPEECH_PROMPT}<|startofspeech|>!{source}<|endofspeech|>"},
            {"role": "assistant", "content": target},
        ],
    }


def _messages(messages: Any) -> tuple[str, str, str]:
    """What system, user and assistant say."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UnusableLine("bad_messages", "messages is no list of objects")
    roles = [message.get("role") for message in messages]
    if roles not in _ROLES:
        raise UnusableLine("bad_messages", f"roles are {roles}; expected {' or '.join(map(str, _ROLES))}")
    said = [message.get("content") for message in messages]
    if not all(isinstance(content, str) for content in said):
        raise UnusableLine("bad_messages", "a message's content is no text")
    system, user, assistant = said if len(said) == 3 else (_SYSTEM, *said)
    return system, user, assistant


def _length(row: Mapping[str, Any], name: str) -> int | None:
    value = row.get(name)
    if value is not None and type(value) is not int:
        raise UnusableLine("bad_length", f"{name} is {value!r}; expected a whole number")
    return value


def _parsed(line: bytes) -> Any:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()  # halves of characters ("\ud800") are no text
    except (ValueError, RecursionError) as error:
        return UnusableLine("not_json", f"not a line of JSON ({error})")
    return row
