"""Reading conversations about one piece of audio each, from either of two layouts.

conversation   {"conversations": [{"from": "user", "value": "<audio>/a.wav</audio> What is said?"},
                                  {"from": "assistant", "value": "hello"}]}
flat           {"audio": "/a.wav", "text": "hello", "prompt": "What is said?"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.errors import EarmarkError
from earmark.files import opened
from earmark.json_items import list_items

AUDIO = "<|audio_pad|>"  # stands in a turn where its audio goes
DEFAULT_PROMPT = "Transcribe the speech."
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_AUDIO_TAG = re.compile(r"<audio>(.*?)</audio>", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What one side says. `text` has no blanks around it and holds AUDIO where audio goes."""

    role: str  # system | user | assistant
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that end with an assistant's, AUDIO in exactly one of them."""

    id: str  # file:line
    audio: Path
    turns: tuple[Turn, ...]


class UnusableLine(EarmarkError):
    """A line that cannot be trained on. `reason` is a short fixed word; the message says where and what."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(id, parsed line) of each entry of JSON lines, or of a JSON list; what is no JSON comes as UnusableLine.

    Blank lines are no entries. InputError if the file cannot be read, or as a list breaks off.
    """
    with opened(path) as file:
        first = file.read(4096).decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")[:1]
    if first == "[":
        for number, item in enumerate(list_items(path), start=1):
            yield f"{path.name}:{number}", item
        return
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}:{number}", _parsed(line, first=number == 1)


def _parsed(line: bytes, *, first: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except (ValueError, RecursionError) as error:
        return UnusableLine("not_json", f"not a line of JSON ({error})")


def conversation(row_id: str, row: Any, mode: str, folder: Path) -> Conversation:
    """The conversation in a parsed line; relative audio paths start at `folder`. UnusableLine if it holds none."""
    if isinstance(row, UnusableLine):
        raise row
    if not isinstance(row, dict):
        raise UnusableLine("not_an_object", f"the line is a {type(row).__name__}, not an object")
    audio, turns = _flat(row) if mode == "flat" else _conversation(row)
    for turn in turns:
        # Qwen3's template moves reasoning about, so what is said could not be told from what is thought.
        if turn.role == "assistant" and ("<think>" in turn.text or "</think>" in turn.text):
            raise UnusableLine("reasoning", "the assistant's turn holds <think>; leave reasoning out of the answers")
        if turn.role == "assistant" and not turn.text:
            raise UnusableLine("empty_answer", "an assistant's turn is empty")
    return Conversation(row_id, folder / audio, turns)


def _flat(row: dict[str, Any]) -> tuple[str, tuple[Turn, ...]]:
    audio, text, prompt = row.get("audio"), row.get("text"), row.get("prompt")
    if not isinstance(audio, str) or not audio or not isinstance(text, str) or not isinstance(prompt, str | None):
        raise UnusableLine("bad_fields", "audio and text must be text, prompt text or missing")
    question = DEFAULT_PROMPT if prompt is None else prompt.strip()
    return audio, (Turn("user", AUDIO + question), Turn("assistant", text.strip()))


def _conversation(row: dict[str, Any]) -> tuple[str, tuple[Turn, ...]]:
    said = row.get("conversations")
    if not isinstance(said, list) or not said:
        raise UnusableLine("bad_fields", "conversations must be a list of turns")
    turns, paths = [], []
    for number, turn in enumerate(said, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise UnusableLine("bad_fields", f'turn {number} is not {{"from", "value"}} with text')
        role = _ROLES.get(turn["from"]) if isinstance(turn.get("from"), str) else None
        if role is None:
            raise UnusableLine("bad_role", f"turn {number} is from {turn.get('from')!r}; known: {', '.join(_ROLES)}")
        paths += [path.strip() for path in _AUDIO_TAG.findall(turn["value"])]
        text = _AUDIO_TAG.sub(AUDIO, turn["value"])
        if "<audio>" in text or "</audio>" in text:
            raise UnusableLine("broken_audio_tag", f"turn {number} has <audio> or </audio> without the other")
        turns.append(Turn(role, text.strip()))
    if len(paths) != 1 or not paths[0]:
        raise UnusableLine("not_one_audio", f"{len(paths)} <audio>path</audio> in all turns; there must be one")
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise UnusableLine("bad_order", f"turns are from {', '.join(roles)}; they must be user, assistant in turn")
    return paths[0], tuple(turns)
