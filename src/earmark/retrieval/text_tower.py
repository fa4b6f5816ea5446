"""The text route: a term's spelling in, one vector out."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import nn

from earmark.errors import InputError
from earmark.retrieval.module_files import SavedModule
from earmark.text import words

_PADDING = 0  # bucket 0 is never hashed to


def character_ngrams(text: str, shortest: int, longest: int) -> list[str]:
    """All character n-grams of each normalised word, `<` and `>` marking its ends.

    >>> character_ngrams("New", 2, 3)
    ['<n', 'ne', 'ew', 'w>', '<ne', 'new', 'ew>']
    """
    ngrams: list[str] = []
    for word in words(text):
        marked = f"<{word}>"
        for size in range(shortest, longest + 1):
            ngrams.extend(marked[start : start + size] for start in range(len(marked) - size + 1))
    return ngrams


class SpellingTower(SavedModule, InputModule):
    """Embeds a surface as a bag of hashed character n-grams, then a residual feed-forward layer.

    Spelling is what a term that nobody said in training shares with the words that were said: a sentence encoder, which
    knows meanings, cannot place such a term. The hash is CRC-32, the same in every process. After Bojanowski et al.
    (2017), "Enriching word vectors with subword information", https://arxiv.org/abs/1607.04606.
    """

    config_keys = [  # noqa: RUF012 (the base class's protocol)
        "buckets", "shortest_ngram", "longest_ngram", "hidden_dim", "embedding_dim", "dropout",
    ]  # fmt: skip

    def __init__(
        self,
        buckets: int,
        shortest_ngram: int,
        longest_ngram: int,
        hidden_dim: int,
        embedding_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.buckets, self.shortest_ngram, self.longest_ngram = buckets, shortest_ngram, longest_ngram
        self.hidden_dim, self.embedding_dim, self.dropout = hidden_dim, embedding_dim, dropout
        self.ngrams = nn.EmbeddingBag(buckets, hidden_dim, mode="mean", padding_idx=_PADDING)
        nn.init.normal_(self.ngrams.weight, std=0.1)
        with torch.no_grad():
            self.ngrams.weight[_PADDING].zero_()
        self.norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden_dim, hidden_dim)
        )
        self.output = nn.Linear(hidden_dim, embedding_dim)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs` are surfaces; InputError if one holds no letter or digit."""
        rows = [self._buckets(text) for text in inputs]
        ids = torch.full((len(rows), max(map(len, rows))), _PADDING)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return {"input_ids": ids}

    def _buckets(self, text: str) -> list[int]:
        ngrams = character_ngrams(text, self.shortest_ngram, self.longest_ngram)
        if not ngrams:
            raise InputError(f"{text!r} holds no letter or digit, so it has no spelling to embed; remove it")
        return [1 + zlib.crc32(ngram.encode()) % (self.buckets - 1) for ngram in ngrams]

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden = self.norm(self.ngrams(features["input_ids"]))
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        features["sentence_embedding"] = self.output(hidden + self.feed_forward(hidden))
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dim
