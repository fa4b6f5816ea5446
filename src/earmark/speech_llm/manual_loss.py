"""The causal language model's loss, computed at labelled positions alone."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from earmark.speech_llm.labels import IGNORED


def manual_loss(
    outputs: CausalLMOutputWithPast, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy in float32 of logits[B, L, vocabulary] against the next of labels[B, L].

    The mean over labelled tokens, or their sum divided by `num_items_in_batch`: what the model itself computes. Logits
    of positions without a label (audio, questions, padding) are never copied to float32.
    """
    assert outputs.logits is not None
    following = labels[:, 1:]
    counts = following != IGNORED
    logits = outputs.logits[:, :-1][counts].float()
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = nn.functional.cross_entropy(logits, following[counts].to(logits.device), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
