"""Tiny base models for fine-tuning tests: the real classes, a closed part of Qwen's vocabulary, real demo speech."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM, WhisperConfig, WhisperModel

from earmark.audio import SAMPLE_RATE, read_spans
from earmark.speech_llm.settings import DataSettings, ModelSettings, Settings, StabilitySettings, TrainSettings

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the tiny bases of `make demo-llm`

import tiny_qwen2_audio_instruct
import tiny_qwen3

# Qwen3's, without its parts for tools.
CHAT_TEMPLATE = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""  # noqa: E501


def make_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Qwen3's tokenizer with its first ranks only, saved to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_qwen3.make_tokenizer(folder, CHAT_TEMPLATE)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_bases(folder: Path, *, hidden_size: int = 64) -> tuple[str, str]:
    """Folders of a random Whisper and a random Qwen3 with its tokenizer."""
    whisper, qwen3 = folder / "whisper", folder / "qwen3"
    torch.manual_seed(0)
    WhisperModel(
        WhisperConfig(
            vocab_size=8, d_model=48, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=8, pad_token_id=0, bos_token_id=0,
            eos_token_id=0, decoder_start_token_id=0,
        )
    ).save_pretrained(whisper)  # fmt: skip
    tokenizer = make_tokenizer(qwen3)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=hidden_size // 4, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():  # as loud as trained ones: with less, no output can be sure of a token
        model.model.embed_tokens.weight.normal_(std=0.3)
        for weight in model.model.layers.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    model.save_pretrained(qwen3)
    return str(whisper), str(qwen3)


def make_qwen2_audio(folder: Path, *, hidden_size: int = 64) -> str:
    """The folder of a random Qwen2-Audio with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    special = tiny_qwen2_audio_instruct.SPECIAL_TOKENS
    tokenizer = tiny_qwen3.make_tokenizer(folder, tiny_qwen2_audio_instruct.CHAT_TEMPLATE, special)
    tiny_qwen2_audio_instruct.make_model(tokenizer, hidden_size, layers=3, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_noise(path: Path, samples: int, seed: int = 0) -> Path:
    """A wav of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng([seed, samples]).standard_normal(samples)
    soundfile.write(path, noise.astype(np.float32), SAMPLE_RATE)
    return path


def noise_conversations(folder: Path, answers: Sequence[str]) -> Path:
    """JSON lines of a conversation about a noise for each of `answers`, the noises of unlike lengths."""
    rows = [
        talk(write_noise(folder / f"{number}.wav", 4_000 + 2_000 * number, number), "What is said?", answer)
        for number, answer in enumerate(answers)
    ]
    return write_lines(folder / "train.jsonl", rows)


def demo_conversations(demo: Path, folder: Path, count: int) -> Path:
    """JSON lines of the demo corpus' first segments, spread over its recordings, each with a wav of its own."""
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows = rows[:: len(rows) // count][:count]
    written = []
    for row in rows:
        start = float(row["offset_s"])
        (clip,) = read_spans(demo / row["audio"], [(start, start + float(row["duration_s"]))])
        wav = folder / f"{row['segment_id']}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, clip, SAMPLE_RATE)
        written.append(talk(wav, "What is said?", row["text"]))
    return write_lines(folder / "train.jsonl", written)


def talk(audio: Path | str, *said: str) -> dict[str, Any]:
    """A line of mode conversation: questions and answers in turn, the audio in front of the first."""
    turns = [f"<audio>{audio}</audio>{said[0]}", *said[1:]]
    return {
        "conversations": [
            {"from": "user" if number % 2 == 0 else "assistant", "value": value} for number, value in enumerate(turns)
        ]
    }


def write_lines(path: Path, rows: list[Any]) -> Path:
    """`rows` as JSON lines; a row that is text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def settings(bases: tuple[str, str] | str, train_json: Path, output: Path, **changed: Any) -> Settings:
    """Settings of a short training on the CPU, of a Qwen2-Audio where `bases` is one; `changed` names any field."""
    if isinstance(bases, str):
        chosen: dict[str, Any] = {"architecture": "qwen2_audio", "qwen2_audio_model": bases}
    else:
        chosen = {"whisper_model": bases[0], "qwen3_model": bases[1], "use_lora": True}
    values: dict[str, Any] = {
        **chosen, "train_json": str(train_json), "output_dir": str(output), "per_device_train_batch_size": 2, **changed,
    }  # fmt: skip
    if values.get("method") != "none":
        values = {"num_train_epochs": 1.0, "logging_steps": 1, **values}
    groups: list[Any] = []
    for group in (ModelSettings, DataSettings, TrainSettings, StabilitySettings):
        own = group.__dataclass_fields__
        groups.append(group(**{name: values.pop(name) for name in list(values) if name in own}))
    assert not values, values
    return Settings(*groups)


def metrics(output: Path) -> list[dict[str, float]]:
    """The lines of train_metrics.jsonl."""
    return [json.loads(line) for line in (output / "train_metrics.jsonl").read_text().splitlines()]
