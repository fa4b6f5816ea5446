"""The retriever as one Sentence Transformers model.

    Router
      audio: WhisperFrames (frozen) -> AudioHead
      text:  SpellingTower
    Normalize

>>> model = TermRetriever("data/demo/models/retriever")
>>> model.encode([samples])        # float32 mono at 16 kHz: one row of 256 numbers, length 1
>>> model.encode(["new york"])     # a surface, in the same space
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import BaseModel
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.util import batch_to_device
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.errors import InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.whisper_frames import WhisperFrames


class TermRetriever(SentenceTransformer):
    """A `SentenceTransformer` that finds Earmark's own modules in the installed package.

    Since version 6, Sentence Transformers imports a module class from outside its own namespace only with
    `trust_remote_code=True`, which would let a model folder name any class. This subclass allows three, by name, and
    nothing else; a saved folder holds configuration and safetensors, no code. (`SentenceTransformer(path,
    trust_remote_code=True)` loads the same folder where this package is installed.)
    """

    _module_classes: Mapping[str, type[nn.Module]] = MappingProxyType(
        {f"{module.__module__}.{module.__name__}": module for module in (WhisperFrames, AudioHead, SpellingTower)}
    )


def load_retriever(folder: Path) -> TermRetriever:
    """Load a trained retriever, in evaluation mode on the CPU or GPU at hand. InputError if `folder` holds none."""
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder}: holds no trained retriever (no modules.json); run the train stage")
    return TermRetriever(str(folder), local_files_only=True).eval()


def build_retriever(encoder: WhisperEncoder, layer: int, head: AudioHead, tower: SpellingTower) -> TermRetriever:
    """Put an untrained retriever together."""
    router = Router(
        {"audio": [WhisperFrames.of(encoder, layer), head], "text": [tower]},
        default_route=None,
        allow_empty_key=False,
    )
    return TermRetriever(modules=[router, Normalize()], similarity_fn_name="dot")


def embed_audio(model: BaseModel, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Unit vectors[B, dim], on the model's device, of cached frames[B, T, frame_dim] with lengths[B] on any device."""
    features = {"frames": frames, "frame_lengths": lengths, "modality": "audio"}
    return model(batch_to_device(features, model.device))["sentence_embedding"]


def embed_surfaces(model: BaseModel, surfaces: list[str]) -> torch.Tensor:
    """Unit vectors[N, dim] of surfaces, on the model's device."""
    features = {**model.preprocess(surfaces), "modality": "text"}
    return model(batch_to_device(features, model.device))["sentence_embedding"]
