"""A Qwen2-Audio too small to be good for anything, to run the backend qwen2_audio without a model hub.

    .venv/bin/python benchmarks/tiny_qwen2_audio_instruct.py data/demo_llm/tiny_qwen2_audio

writes a folder with random weights (1.8 million parameters) of the real architecture, and a tokenizer: the first 4,096
ranks of Qwen's own byte-pair encoding with Qwen2-Audio's special tokens and its chat template. A folder that is there
already is left as it is. `speech_llm.qwen2_audio.qwen2_audio_model` is where to name it.
"""

from __future__ import annotations

import torch
from tiny_qwen3 import make_tokenizer, write_model
from transformers import GenerationConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2TokenizerFast

from earmark.speech_llm.qwen2_audio import CHAT_TEMPLATE

SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
]  # fmt: skip


def make_model(
    tokenizer: Qwen2TokenizerFast, hidden_size: int, layers: int, seed: int, tower_dim: int = 48
) -> Qwen2AudioForConditionalGeneration:
    """Random weights, as loud as trained ones: of the usual initialisation no output could be sure of a token."""
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config={
                "d_model": tower_dim, "encoder_layers": 2, "encoder_attention_heads": 4,
                "encoder_ffn_dim": 2 * tower_dim, "num_mel_bins": 128,
            },
            text_config={
                "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": hidden_size,
                "intermediate_size": 3 * hidden_size, "num_hidden_layers": layers, "num_attention_heads": 4,
                "num_key_value_heads": 4, "max_position_embeddings": 2048,
            },
            audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        )
    )  # fmt: skip
    with torch.no_grad():
        for part in (model.model.language_model.layers, model.model.audio_tower.layers):
            for weight in part.parameters():
                if weight.ndim > 1:
                    weight.mul_(5)
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("conv1.weight", "conv2.weight", "embed_tokens.weight", "lm_head.weight", "projector.linear.weight")
            ):
                parameter.normal_(std=0.3)
            if name.endswith("projector.linear.bias"):
                parameter.normal_(std=0.1)
    # Like the published one, which samples.
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.5, repetition_penalty=1.1)
    return model


if __name__ == "__main__":
    write_model(
        "Write a tiny random Qwen2-Audio with its tokenizer.",
        lambda folder: make_tokenizer(folder, CHAT_TEMPLATE, SPECIAL_TOKENS),
        make_model,
    )
