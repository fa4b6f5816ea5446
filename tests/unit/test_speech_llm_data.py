"""Lines become conversations, conversations tokens of which only answers count; what cannot be used is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from speech_llm_bases import make_tokenizer, talk, write_lines, write_noise
from transformers import Qwen2TokenizerFast

from earmark.errors import ConfigError, InputError, TooManyRejectedError
from earmark.speech_llm.batches import Collator, Samples, read_samples
from earmark.speech_llm.clip_features import WhisperClips
from earmark.speech_llm.conversations import AUDIO, Turn, UnusableLine, conversation
from earmark.speech_llm.labels import IGNORED, ChatLabels, Tokens, fit_tokens
from earmark.speech_llm.settings import DataSettings

STACK = 5


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatLabels:
    return ChatLabels(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def read(chat: ChatLabels, path: Path, **settings: Any) -> Samples:
    data = DataSettings(train_json=str(path), **{"max_rejected_fraction": 1.0, **settings})
    return read_samples(path, path.parent / "train_data.json", chat, data, WhisperClips(80, 1500, STACK))


def counted(chat: ChatLabels, tokens: Tokens) -> str:
    """The text that the loss counts."""
    return chat.tokenizer.decode([label for label in tokens.labels if label != IGNORED])


def test_loss_counts_the_answer_and_the_token_that_ends_it_and_nothing_else(chat: ChatLabels) -> None:
    tokens = chat((Turn("system", "be brief"), Turn("user", AUDIO + "What?"), Turn("assistant", "a distant farm")))
    assert counted(chat, tokens) == "a distant farm<|im_end|>"


def test_all_answers_of_a_conversation_count_and_think_blocks_do_not(chat: ChatLabels) -> None:
    turns = (
        Turn("user", f"first {AUDIO}"), Turn("assistant", "one\nmore line"),
        Turn("user", "one more line"), Turn("assistant", "二 und 🎈"),
    )  # fmt: skip
    tokens = chat(turns)
    assert "<think>" in chat.tokenizer.decode(tokens.ids)
    assert counted(chat, tokens) == "one\nmore line<|im_end|>二 und 🎈<|im_end|>"


def test_an_answer_that_the_question_repeats_is_not_mistaken_for_it(chat: ChatLabels) -> None:
    tokens = chat((Turn("user", f"{AUDIO}yes\nassistant\nyes"), Turn("assistant", "yes")))
    assert counted(chat, tokens) == "yes<|im_end|>"
    newline = len(tokens.ids) - 1  # the last token
    assert np.flatnonzero(tokens.labels != IGNORED).tolist() == list(range(newline - tokens.valid_labels, newline))


def test_what_is_asked_at_inference_is_what_stands_before_the_first_label(chat: ChatLabels) -> None:
    turns = (Turn("user", f"{AUDIO} What is said?"), Turn("assistant", "hello"))
    tokens = chat(turns)
    first = int(np.flatnonzero(tokens.labels != IGNORED)[0])
    assert chat.prompt_ids(turns[:-1]).tolist() == tokens.ids[:first].tolist()


def test_audio_in_an_answer_is_never_a_label(chat: ChatLabels) -> None:
    tokens = chat((Turn("user", "Repeat."), Turn("assistant", f"{AUDIO} like this")))
    assert counted(chat, tokens) == " like this<|im_end|>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "special token"),
        ("{{ messages[-1].content }}<|im_end|>", "does not write each"),
        (None, "needs a chat template"),
    ],
)
def test_a_template_that_hides_where_answers_are_is_refused(
    chat: ChatLabels, tmp_path: Path, template: str | None, problem: str
) -> None:
    chat.tokenizer.save_pretrained(tmp_path)
    tokenizer = Qwen2TokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=problem):
        ChatLabels(tokenizer)


def test_a_turn_that_the_template_would_change_or_that_ends_turns_is_unusable(chat: ChatLabels, tmp_path: Path) -> None:
    with pytest.raises(UnusableLine, match="<\\|im_end\\|>"):
        chat((Turn("user", f"{AUDIO}<|im_end|>\n<|im_start|>assistant\nhi"), Turn("assistant", "yes")))
    chat.tokenizer.save_pretrained(tmp_path)
    tokenizer = Qwen2TokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | replace('!', '') }}<|im_end|>{% endfor %}"
    with pytest.raises(UnusableLine, match="does not write the turns as they are"):
        ChatLabels(tokenizer)((Turn("user", AUDIO), Turn("assistant", "hi!")))


def test_flat_and_conversation_lines_say_the_same(chat: ChatLabels, tmp_path: Path) -> None:
    wav = write_noise(tmp_path / "a b.wav", 16_000)
    flat = write_lines(tmp_path / "flat.jsonl", [{"audio": "a b.wav", "text": " hello ", "prompt": "What is said?"}])
    turns = [
        {"from": "human", "value": f"<audio>{wav}</audio>What is said?"},
        {"from": "gpt", "value": "hello"},
    ]
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps([{"conversations": turns}], indent=1))
    (one,), (other,) = read(chat, flat, data_mode="flat").samples, read(chat, listed).samples
    assert one.audio == other.audio == wav
    assert one.tokens.ids.tolist() == other.tokens.ids.tolist()
    assert one.tokens.labels.tolist() == other.tokens.labels.tolist()


def test_every_unusable_line_is_told_with_its_line_and_reason(chat: ChatLabels, tmp_path: Path) -> None:
    wav = write_noise(tmp_path / "good.wav", 16_000)
    long = write_noise(tmp_path / "long.wav", 31 * 16_000)
    bad = {
        "not_json": "{",
        "not_an_object": [3],
        "bad_fields": {"conversations": "hello"},
        "bad_role": {"conversations": [{"from": "narrator", "value": "once"}]},
        "broken_audio_tag": {"conversations": [{"from": "user", "value": f"<audio>{wav}"}]},
        "not_one_audio": talk(wav, f"<audio>{wav}</audio>?", "two"),
        "bad_order": {"conversations": [{"from": "user", "value": f"<audio>{wav}</audio>"}]},
        "empty_answer": talk(wav, "What?", "  "),
        "reasoning": talk(wav, "What?", "<think>hm</think>yes"),
        "special_token_in_text": talk(wav, "What?<|im_start|>", "yes"),
        "not_unicode": '{"conversations": [{"from": "user", "value": "<audio>good.wav</audio>\\ud800"}, '
        '{"from": "assistant", "value": "yes it is"}]}',
        "bad_audio": talk(tmp_path / "none.wav", "What?", "yes"),
        "too_few_labels": talk(wav, "What?", "yes"),
        "all_labels_masked": talk(wav, "What is it? " * 50, "no more than this"),
    }
    rows = [*bad.values(), talk(long, "What?", "yes it is long"), talk(wav, "What?", "yes it is good")]
    path = write_lines(tmp_path / "train.jsonl", rows)
    kept = read(chat, path, min_valid_labels=4, max_length=100).samples
    assert [sample.id for sample in kept] == ["train.jsonl:16"]
    told = [json.loads(line) for line in (tmp_path / "train_data.rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in told] == [
        *((f"train.jsonl:{number}", reason) for number, reason in enumerate(bad, start=1)),
        ("train.jsonl:15", "bad_audio"),
    ]
    counts = json.loads((tmp_path / "train_data.json").read_text())
    assert (counts["input"], counts["kept"], counts["rejected"]) == (16, 1, 15)
    assert counts["valid_labels"]["total"] == kept[0].tokens.valid_labels > 3
    with pytest.raises(TooManyRejectedError, match="15 of 16 conversations"):
        read(chat, path, max_rejected_fraction=0.5, min_valid_labels=4, max_length=100)


def test_audio_that_only_decoding_shows_to_be_bad_is_told_before_training(chat: ChatLabels, tmp_path: Path) -> None:
    good, ill = write_noise(tmp_path / "good.wav", 16_000), tmp_path / "ill.wav"
    soundfile.write(ill, np.array([0.1, np.nan] * 8_000, np.float32), 16_000, subtype="FLOAT")
    broken = tmp_path / "broken.flac"
    soundfile.write(broken, soundfile.read(good)[0], 16_000)
    broken.write_bytes(broken.read_bytes()[:9_000])
    path = write_lines(tmp_path / "train.jsonl", [talk(audio, "What?", "a farm") for audio in (ill, good, broken)])
    assert [sample.audio for sample in read(chat, path).samples] == [good]
    assert len(read(chat, path, check_audio=False).samples) == 3


def test_a_file_without_a_usable_line_is_an_error(chat: ChatLabels, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no conversation to use"):
        read(chat, write_lines(tmp_path / "train.jsonl", ["{"]))
    with pytest.raises(InputError, match="no such file"):
        read(chat, tmp_path / "none.jsonl")


def test_a_conversation_needs_exactly_one_audio_in_any_turn() -> None:
    turns = [
        {"from": "user", "value": "Listen."},
        {"from": "assistant", "value": "Go on."},
        {"from": "user", "value": "What is it? <audio>b.wav</audio>"},
        {"from": "assistant", "value": "a farm"},
    ]
    talked = conversation("x:1", {"conversations": turns}, "conversation", Path("/base"))
    assert talked.audio == Path("/base/b.wav")
    assert talked.turns[2].text == f"What is it? {AUDIO}"


def test_a_cut_keeps_audio_and_the_last_answer_only_where_asked(chat: ChatLabels) -> None:
    turns = (Turn("user", "Listen to this one, please. " * 8), Turn("assistant", "sure"), Turn("user", AUDIO + "What?"))
    tokens = chat((*turns, Turn("assistant", "a distant farm")))
    header = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"  # as the generation prompt ends
    assert chat.tokenizer.decode(chat.prompt_ids(turns)).endswith(header)
    limits = {"audio_id": chat.audio_id, "audio_tokens": 11}
    whole = len(tokens.ids) + 10
    assert fit_tokens(tokens, max_length=whole, all_masked="reject", **limits) is tokens
    with pytest.raises(UnusableLine, match="max_length is 40"):
        fit_tokens(tokens, max_length=40, all_masked="reject", **limits)
    cut = fit_tokens(tokens, max_length=40, all_masked="keep_last", **limits)
    assert len(cut.ids) + 10 == 40
    assert (cut.ids == chat.audio_id).sum() == 1
    assert counted(chat, cut) == "a distant farm<|im_end|>"
    question_and_answer = f"<|im_start|>user\n{AUDIO}What?{header}a distant farm<|im_end|>"
    assert chat.tokenizer.decode(cut.ids) == f"<|im_start|>user\nListen<|im_end|>\n{question_and_answer}"
    for max_length in (35, 36, 38):  # no turn of which but the beginning is left
        bare = fit_tokens(tokens, max_length=max_length, all_masked="keep_last", **limits)
        assert chat.tokenizer.decode(bare.ids) == question_and_answer
    least = fit_tokens(tokens, max_length=33, all_masked="keep_last", **limits)
    assert chat.tokenizer.decode(least.ids) == question_and_answer.replace("What?", "")
    with pytest.raises(UnusableLine, match="do not fit"):
        fit_tokens(tokens, max_length=32, all_masked="keep_last", **limits)


def test_older_turns_are_cut_before_the_question_that_is_answered(chat: ChatLabels) -> None:
    turns = (
        Turn("system", "Be brief. " * 9), Turn("user", AUDIO + "Listen to this one. " * 9), Turn("assistant", "sure"),
        Turn("user", "What is said at its end?"), Turn("assistant", "a distant farm"),
    )  # fmt: skip
    tokens = chat(turns)
    cut = fit_tokens(tokens, audio_id=chat.audio_id, audio_tokens=11, max_length=70, all_masked="keep_last")
    text = chat.tokenizer.decode(cut.ids)
    assert len(cut.ids) + 10 <= 70
    assert "<|im_start|>user\nWhat is said at its end?<|im_end|>" in text
    assert "Be brief." in text and "Listen" not in text


def test_a_batch_holds_an_audio_token_for_each_100_ms_and_pads_on_the_right(chat: ChatLabels, tmp_path: Path) -> None:
    clips = [write_noise(tmp_path / f"{n}.wav", n) for n in (16_000, 4_801)]  # 50 and 16 states
    path = write_lines(tmp_path / "train.jsonl", [talk(clip, "What?", "a farm") for clip in clips])
    collate = Collator(WhisperClips(80, 1500, STACK), audio_id=chat.audio_id, pad_id=chat.end_id)
    samples = read(chat, path).samples
    batch = collate(list(samples))
    assert batch["states"].tolist() == [50, 16]
    assert (batch["input_ids"] == chat.audio_id).sum(1).tolist() == [10, 4]
    assert batch["mel"].shape == (2, 80, 104)
    lengths = batch["attention_mask"].sum(1)
    assert (lengths[0] - lengths[1]).item() == 6
    assert batch["attention_mask"][1, : lengths[1]].all()
    assert (batch["labels"][1, lengths[1] :] == IGNORED).all()
    assert not ((batch["labels"] != IGNORED) & (batch["input_ids"] == chat.audio_id)).any()
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [sample.tokens.valid_labels for sample in samples]
