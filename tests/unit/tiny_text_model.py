"""Sentence Transformers models of real classes, made tiny: a BERT with pooling, and static embeddings."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = ["rome", "oslo", "new", "york", "lima", "big", "apple", "kyoto", "quito", "bonn"]
LETTERS = string.ascii_lowercase
STATIC_DIM = 12


def make_tiny_text_model(folder: Path, seed: int = 0, hidden_dim: int = 16) -> Path:
    """A random BERT of one layer that pools by the mean; letters are pieces, so it reads any English word."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]
    plain = folder / "plain"
    plain.mkdir(parents=True)
    (plain / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=hidden_dim, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * hidden_dim, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(plain)
    BertTokenizer(str(plain / "vocab.txt")).save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(hidden_dim, "mean")]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "big "}, default_prompt_name="query")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def make_tiny_static_model(folder: Path, seed: int = 0) -> Path:
    """A random vector a letter, averaged; nothing for what is no Latin letter."""
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(seed)
    static = StaticEmbedding(tokenizer, embedding_dim=STATIC_DIM)
    SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)
    return folder
