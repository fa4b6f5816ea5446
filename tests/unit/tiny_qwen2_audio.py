"""A Qwen2-Audio of the real classes, made tiny, with the first ranks of Qwen's own tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the tiny bases of `make demo-llm`

from tiny_qwen2_audio_instruct import CHAT_TEMPLATE, SPECIAL_TOKENS, make_model
from tiny_qwen3 import make_tokenizer

HIDDEN_DIM = 64


def make_qwen2_audio(path: Path, tower_dim: int = 32, seed: int = 0) -> Path:
    """A model folder: weights large enough for attention to choose, rounded to bfloat16, as they are published."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(path, CHAT_TEMPLATE, SPECIAL_TOKENS)
    model = make_model(tokenizer, HIDDEN_DIM, layers=2, seed=seed, tower_dim=tower_dim)
    model.bfloat16().float().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
