"""Tokens of a conversation, and which of them the loss counts: what an assistant says, and the token that ends it.

A chat template is a program: Qwen3's writes `<think>\n\n</think>\n\n` in front of the last answer only, and drops
reasoning from earlier ones. So spans are not searched for in the text. The template is run once, for each order of
roles, on turns that are marks; what it writes between the marks is its own. A conversation must then come out of the
template as exactly these pieces with its turns between, which is checked, and places are known by counting. Tokens get
their labels from the tokenizer's offsets.

What stands before an answer is context, never a label. Before the last one it is what the generation prompt ends with
at inference (`enable_thinking=False`): role and empty think block. Before earlier ones it is the role alone, as in the
history that a model is shown at inference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from earmark.errors import ConfigError
from earmark.speech_llm.conversations import AUDIO, Turn, UnusableLine
from earmark.text import is_unicode

IGNORED = -100  # the label of a token that the loss does not count
_TEMPLATE_OPTIONS: dict[str, Any] = {"tokenize": False, "enable_thinking": False}
_AUDIO_AND_BLANKS = re.compile(re.escape(AUDIO) + "[ \t]*")
_MARK = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class Tokens:
    """ids[n] of a conversation, AUDIO being one token, and labels[n]: the id where the loss counts, else IGNORED.

    borders[n] is true where the chat template writes a token, not a turn; None where that is not known.
    """

    ids: np.ndarray  # int32
    labels: np.ndarray  # int32
    borders: np.ndarray | None = None  # bool

    @property
    def valid_labels(self) -> int:
        return int((self.labels != IGNORED).sum())


class ChatLabels:
    """Turns conversations into tokens with labels, by the chat template of `tokenizer`.

    In a turn the template is shown `audio_text` in place of AUDIO, `audio_token` being the one token of it that stands
    for the audio. By default both are AUDIO, which the tokenizer gets as a special token if it has none. ConfigError if
    the tokenizer lacks another `audio_token`, gives no offsets, has no chat template, or one that does not end an
    answer with a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, audio_token: str = AUDIO, audio_text: str = AUDIO):
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise ConfigError(
                f"{tokenizer.name_or_path}: the tokenizer needs a chat template and offsets (tokenizer.json); take "
                "that of an instruction-tuned model"
            )
        if AUDIO == audio_token not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO]}, replace_extra_special_tokens=False)
        if audio_token not in tokenizer.get_vocab():
            raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no {audio_token}, which stands for audio")
        self.tokenizer, self.audio_text = tokenizer, audio_text
        self.audio_id: int = tokenizer.get_vocab()[audio_token]
        self._added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
        self._forbidden = re.compile("|".join(re.escape(token) for token in self._added if token != AUDIO))
        self._pieces: dict[tuple[str, ...], list[str]] = {}
        self.end_id = self._end_of_answer(self._between(("user", "assistant"))[-1])

    def __call__(self, turns: tuple[Turn, ...]) -> Tokens:
        """UnusableLine if a turn holds a special token or half a character, the template changes its text, or a token
        spans an answer's border.
        """
        self._check_text(turns)
        turns = self._with_audio_text(turns)
        text, spans = self._render(turns)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"], np.int32)
        starts, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
        counts = np.zeros(len(ids), bool)
        borders = np.ones(len(ids), bool)
        for turn, (start, end) in zip(turns, spans, strict=True):
            borders &= (starts < start) | (starts >= end)
            if turn.role != "assistant":
                continue
            if ((starts < start) & (ends > start)).any() or ((starts < end) & (ends > end)).any():
                raise UnusableLine("border_inside_token", "a token lies across the border of an answer")
            # The end token is the first that begins where the answer ends.
            counts |= (starts >= start) & (ends <= end) | (starts == end) & (ids == self.end_id)
        labels = np.where(counts & (ids != self.audio_id), ids, IGNORED).astype(np.int32)
        return Tokens(ids, labels, borders)

    def prompt_ids(self, turns: tuple[Turn, ...]) -> np.ndarray:
        """ids[n] of turns that end with a user's, and of what asks for the answer."""
        self._check_text(turns)
        text = self._apply(self._with_audio_text(turns), add_generation_prompt=True)
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def _render(self, turns: tuple[Turn, ...]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as the template writes it, and (start, end) of each turn in it, in characters."""
        text, spans = "", []
        for piece, turn in zip(self._between(tuple(turn.role for turn in turns)), (*turns, None), strict=True):
            text += piece
            if turn is not None:
                spans.append((len(text), len(text) + len(turn.text)))
                text += turn.text
        if text != self._apply(turns):
            raise UnusableLine("template_changes_text", "the chat template does not write the turns as they are")
        return text, spans

    def _check_text(self, turns: tuple[Turn, ...]) -> None:
        for turn in turns:
            if not is_unicode(turn.text):
                raise UnusableLine("not_unicode", "a turn holds half of a surrogate pair (\\ud800 to \\udfff)")
            if found := self._forbidden.search(turn.text):
                raise UnusableLine("special_token_in_text", f"a turn holds {found[0]!r}, which ends or begins turns")
        if sum(turn.text.count(AUDIO) for turn in turns) != 1:
            raise UnusableLine("special_token_in_text", f"a turn holds {AUDIO!r} as text")

    def _with_audio_text(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if self.audio_text == AUDIO:
            return turns
        # It ends a line of its own: blanks between audio and question are not the question's.
        return tuple(Turn(turn.role, _AUDIO_AND_BLANKS.sub(lambda _: self.audio_text, turn.text)) for turn in turns)

    def _between(self, roles: tuple[str, ...]) -> list[str]:
        """What the template writes before, between and after turns of these roles."""
        if roles not in self._pieces:
            marks = tuple(Turn(role, f"\ue000{number}\ue001") for number, role in enumerate(roles))
            parts = _MARK.split(self._apply(marks))
            if parts[1::2] != [str(number) for number in range(len(roles))]:
                raise ConfigError(
                    f"{self.tokenizer.name_or_path}: the chat template does not write each of the turns "
                    f"{', '.join(roles)} once, in order; use another template"
                )
            self._pieces[roles] = parts[::2]
        return self._pieces[roles]

    def _apply(self, turns: tuple[Turn, ...], **options: Any) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return str(self.tokenizer.apply_chat_template(messages, **_TEMPLATE_OPTIONS, **options))

    def _end_of_answer(self, after: str) -> int:
        ended = [token for token in self._added if after.startswith(token)]
        if not ended:
            raise ConfigError(
                f"{self.tokenizer.name_or_path}: the chat template ends an answer with {after!r}, not with a special "
                "token, so the model could not learn to stop; use another template"
            )
        return self._added[max(ended, key=len)]


def fit_tokens(
    tokens: Tokens, *, audio_id: int, audio_tokens: int, max_length: int, all_masked: str
) -> Tokens:  # fmt: skip
    """Cut a conversation to `max_length` tokens, its audio being `audio_tokens` of them.

    The end is cut off. Where that takes all labels, `all_masked` decides: `reject` (UnusableLine), or `keep_last`: the
    audio and the last answer stay, with what the template writes before the answer and around the audio's turn, and
    tokens in front of the answer are taken out instead: those of older turns first, then those of the turn that it
    answers, the last of either first. UnusableLine if that does not fit.
    """
    room = max_length - audio_tokens + 1  # for tokens as they are here: AUDIO is one
    if len(tokens.ids) <= room:
        return tokens
    audio_at = int(np.flatnonzero(tokens.ids == audio_id)[0])
    if audio_at < room and (tokens.labels[:room] != IGNORED).any():
        return _picked(tokens, np.arange(room))
    detail = f"{len(tokens.ids) - 1 + audio_tokens} tokens, of which {audio_tokens} audio; max_length is {max_length}"
    if all_masked == "reject":
        raise UnusableLine("all_labels_masked", f"nothing of the answer is left: {detail}")
    labelled = np.flatnonzero(tokens.labels != IGNORED)
    breaks = np.flatnonzero(np.diff(labelled) > 1)
    last_answer = labelled[breaks[-1] + 1 :] if len(breaks) else labelled
    must = np.concatenate([last_answer, [audio_at], _borders_around(tokens, int(last_answer[0]), audio_at)])
    must = np.unique(must)
    if len(must) > room:
        raise UnusableLine("too_long", f"audio and last answer do not fit: {detail}")
    question_at = _turn_before(tokens, int(last_answer[0]))
    question, older = np.arange(question_at, last_answer[0]), np.arange(question_at)
    others = np.concatenate([np.setdiff1d(question, must), np.setdiff1d(older, must)])[: room - len(must)]
    while len(others) and tokens.borders is not None and tokens.borders[others[-1]]:
        others = others[:-1]  # the beginning of a turn of which nothing would be left
    kept = np.union1d(must, others)
    # What ends a turn of which nothing is left goes too: the first token kept begins a turn, as that of the whole does.
    kept = kept[int(np.argmax(tokens.ids[kept] == tokens.ids[0])) :]
    # The end of an earlier answer may be kept without the answer: that is no place to learn to stop.
    labels = np.where(np.arange(len(tokens.ids)) < last_answer[0], IGNORED, tokens.labels).astype(np.int32)
    return _picked(Tokens(tokens.ids, labels, tokens.borders), kept)


def _turn_before(tokens: Tokens, answer_at: int) -> int:
    """Where the turn in front of an answer begins, with what the template writes in front of it; 0 if there is none."""
    assert tokens.borders is not None
    turns = np.flatnonzero(~tokens.borders[:answer_at])
    breaks = np.flatnonzero(np.diff(turns) > 1)
    return int(turns[breaks[-1]]) + 1 if len(breaks) else 0


def _borders_around(tokens: Tokens, answer_at: int, audio_at: int) -> np.ndarray:
    """Where the template's tokens stand in front of an answer, and in front of and behind the turn of the audio."""
    assert tokens.borders is not None
    turns = np.flatnonzero(~tokens.borders)
    breaks = np.flatnonzero(np.diff(turns) > 1)
    firsts, lasts = turns[np.r_[0, breaks + 1]], turns[np.r_[breaks, len(turns) - 1]]
    ends = np.r_[-1, lasts]  # of the turn in front of each, -1 where there is none
    begins = np.r_[firsts, len(tokens.ids)]
    audio_turn = int(np.searchsorted(firsts, audio_at, side="right")) - 1
    answer_turn = int(np.searchsorted(firsts, answer_at, side="right")) - 1
    runs = [
        np.arange(ends[number] + 1, begins[number])
        for number in {answer_turn, audio_turn, audio_turn + 1}
    ]  # fmt: skip
    return np.concatenate([run[run < answer_at] for run in runs])


def _picked(tokens: Tokens, places: np.ndarray) -> Tokens:
    borders = None if tokens.borders is None else tokens.borders[places]
    return Tokens(tokens.ids[places], tokens.labels[places], borders)
