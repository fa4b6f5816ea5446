"""One line of each training format, and the check that reads a line back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

FORMATS = ("funasr_nano", "funasr", "conversation", "flat")
LENGTHS = {"funasr_nano": ("speech_length", "text_length"), "funasr": ("source_len", "target_len")}
SPEECH_PROMPT = "语音转写："  # "transcribe the speech:", the words Fun-ASR-Nano was trained with
NO_TERM = "none"
_SPEECH = (f"{SPEECH_PROMPT}<|startofspeech|>!", "<|endofspeech|>")  # before and after the path
_AUDIO = ("<audio>", "</audio> ")
_FUNASR_KEYS, _FLAT_KEYS = {"key", "source", "target"}, {"audio", "text", "prompt"}


class Example(NamedTuple):  # a frozen dataclass takes four times as long to make, and lists have millions
    """One chunk as the formats see it. `answer` is the text to learn under the task asked for by `prompt`."""

    key: str
    wav: str  # absolute path
    duration_s: float
    text: str
    prompt: str
    answer: str


def fbank_frames(duration_s: float) -> int:
    """Length in 10 ms fbank frames (25 ms windows)."""
    # Rounded to microseconds: 0.985 s is 985 ms, though as a float it is a little less.
    return int((round(duration_s * 1000, 3) - 25) // 10 + 1)


def text_units(text: str) -> int:
    """Length in words where the text has spaces, else in characters."""
    words = text.split()
    return len(words) if len(words) > 1 else len(text.strip())


def line_writer(format: str, count_tokens: Callable[[str], int] | None) -> Callable[[Example], dict[str, Any]]:
    """The function that makes a line of `format`. Without `count_tokens`, lines hold no lengths of audio and text."""
    if format == "funasr_nano":
        return lambda example: funasr_nano(example, count_tokens)
    if format == "funasr":
        return lambda example: funasr(example, with_lengths=count_tokens is not None)
    return {"conversation": conversation, "flat": flat}[format]


def funasr_nano(example: Example, count_tokens: Callable[[str], int] | None) -> dict[str, Any]:
    """ChatML messages for Fun-ASR-Nano; speech_length in fbank frames, text_length in tokens."""
    line: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": example.wav.join(_SPEECH)},
            {"role": "assistant", "content": example.text},
        ]
    }
    if count_tokens is not None:
        line |= {"speech_length": fbank_frames(example.duration_s), "text_length": count_tokens(example.text)}
    return line


def funasr(example: Example, *, with_lengths: bool = True) -> dict[str, Any]:
    """FunASR's key/source/target; source_len in fbank frames, target_len in words or characters."""
    line: dict[str, Any] = {"key": example.key, "source": example.wav, "target": example.text}
    if with_lengths:
        line |= {"source_len": fbank_frames(example.duration_s), "target_len": text_units(example.text)}
    return line


def conversation(example: Example) -> dict[str, Any]:
    """One question about the audio and its answer."""
    return {
        "conversations": [
            {"from": "user", "value": example.wav.join(_AUDIO) + example.prompt},
            {"from": "assistant", "value": example.answer},
        ]
    }


def flat(example: Example) -> dict[str, Any]:
    """audio, text, prompt."""
    return {"audio": example.wav, "text": example.answer, "prompt": example.prompt}


def line_problem(format: str, row: Any, *, with_lengths: bool = True) -> str | None:
    """What makes `row`, a parsed line, no valid line of `format`; None if nothing does."""
    if not isinstance(row, dict):
        return "not a JSON object"
    try:
        if problem := _PROBLEMS[format](row):
            return problem
        return _length_problem(row, *LENGTHS.get(format, ())) if with_lengths else None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        return f"a key is missing or of the wrong type: {error!r}"


def _funasr_nano_problem(row: dict[str, Any]) -> str | None:
    roles = [message["role"] for message in row["messages"]]
    if roles not in (["system", "user", "assistant"], ["user", "assistant"]):
        return f"roles are {roles}"
    before, after = _SPEECH
    user = row["messages"][-2]["content"]
    is_path_between = user.startswith(f"{before}/") and user.endswith(after)
    if not is_path_between or len(user) < len(before) + len("/x") + len(after):
        return "the user content is not the prompt and one absolute path between the speech marks"
    if not _is_text(row["messages"][-1]["content"]):
        return "the assistant content is empty or no text"
    return None


def _funasr_problem(row: dict[str, Any]) -> str | None:
    if row.keys() - LENGTHS["funasr"] != _FUNASR_KEYS:
        return f"keys are {sorted(row)}"
    if not row["source"].startswith("/") or not _is_text(row["target"]) or not _is_text(row["key"]):
        return "key or target is empty or no text, or source is no absolute path"
    if "target_len" in row and row["target_len"] != text_units(row["target"]):
        return f"target_len {row['target_len']} is not the length of target"
    return None


def _conversation_problem(row: dict[str, Any]) -> str | None:
    turns = row["conversations"]
    if [turn["from"] for turn in turns] != ["user", "assistant"]:
        return "turns are not user, assistant"
    before, after = _AUDIO
    user = turns[0]["value"]
    path_end = user.find(after, len(before) + len("/x"))
    if not user.startswith(f"{before}/") or path_end < 0 or len(user) == path_end + len(after):
        return "the user turn has no <audio>/absolute/path</audio> followed by a prompt"
    return None if _is_text(turns[1]["value"]) else "the assistant turn is empty or no text"


def _flat_problem(row: dict[str, Any]) -> str | None:
    if not row.keys() <= _FLAT_KEYS:
        return f"keys are {sorted(row)}"
    if not row["audio"].startswith("/") or not _is_text(row["text"]):
        return "text is empty or no text, or audio is no absolute path"
    return None if isinstance(row.get("prompt", ""), str) else "prompt is no text"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not value.isspace()


def _length_problem(row: dict[str, Any], *names: str) -> str | None:
    for name in names:
        if type(row[name]) is not int or row[name] < 1:
            return f"{name} is {row[name]!r}; expected a whole number of at least 1"
    return None


_PROBLEMS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "funasr_nano": _funasr_nano_problem,
    "funasr": _funasr_problem,
    "conversation": _conversation_problem,
    "flat": _flat_problem,
}
