"""The retriever as one Sentence Transformers model, in three forms: alignment, and pooled with either pair of towers.

    alignment                                            pooled
    Router                                               Router
      audio: FrozenEncoder -> UnitHead -> UnitNgrams       audio: FrozenEncoder -> AudioHead
      text:  TermUnits                                     text:  SpellingTower or TextModelTower
                                                         Normalize

    pooled, with Qwen2-Audio's language model, which both routes go through
    Router
      audio: Qwen2AudioTowerFrames -> Qwen2LanguageModel -> MeanProjection
      text:  Qwen2TextTower
    Normalize

>>> model = TermRetriever("data/demo/models/retriever")
>>> model.score([samples], ["new york", "newark"])  # float32 mono at 16 kHz: scores[1, 2], higher is likelier
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import BaseModel
from sentence_transformers.base.modules import Module, Normalize, Router
from sentence_transformers.util import batch_to_device
from torch import nn

from earmark.errors import ConfigError, InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.qwen2_audio_frames import Qwen2AudioTowerFrames
from earmark.retrieval.qwen2_language_model import MeanProjection, Qwen2LanguageModel
from earmark.retrieval.qwen2_text_tower import Qwen2TextTower
from earmark.retrieval.sub_batches import embed_in_sub_batches
from earmark.retrieval.term_alignment import alignment_scores, emissions
from earmark.retrieval.term_units import TermUnits, pad_units
from earmark.retrieval.text_model_tower import TextModelTower
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.unit_head import UnitHead
from earmark.retrieval.unit_ngrams import UnitNgrams
from earmark.retrieval.whisper_frames import WhisperFrames

PRECISIONS = ("float32", "int8")

_MODULES = (
    WhisperFrames, Qwen2AudioTowerFrames, AudioHead, SpellingTower, UnitHead, UnitNgrams, TermUnits, Qwen2LanguageModel,
    MeanProjection, Qwen2TextTower, TextModelTower,
)  # fmt: skip


class TermRetriever(SentenceTransformer):
    """A `SentenceTransformer` that finds Earmark's own modules in the installed package.

    Since version 6, Sentence Transformers imports a module class from outside its own namespace only with
    `trust_remote_code=True`, which would let a model folder name any class. This subclass allows those of Earmark, by
    name, and nothing else; a saved folder holds configuration and safetensors, no code. (`SentenceTransformer(path,
    trust_remote_code=True)` loads the same folder where this package is installed.)
    """

    _module_classes: Mapping[str, type[nn.Module]] = MappingProxyType(
        {f"{module.__module__}.{module.__name__}": module for module in _MODULES}
    )

    sub_batch_size: int | None = None  # of a training that asks for it, where terms and audio are pooled

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As any `SentenceTransformer`; where it has a `sub_batch_size`, see `sub_batches`."""
        if self.sub_batch_size is None:
            return super().forward(input, **kwargs)
        return embed_in_sub_batches(super().forward, input, self.sub_batch_size)

    @property
    def term_units(self) -> TermUnits | None:
        """How terms are spelled where the interaction is alignment; None where it is pooled."""
        router: Any = self[0]
        text = router.sub_modules["text"][0]
        return text if isinstance(text, TermUnits) else None

    @property
    def encoder_precision(self) -> str:
        """Of the frozen encoder's matrix products: "float32", or "int8" where it was set so.

        "int8" is for hearing with a Whisper on a CPU, in 60 % of the encoder's time (see `int8_product`). A saved model
        does not keep it. ConfigError, also when a clip is heard, where the encoder is no Whisper or not a plain one.
        """
        return getattr(self._audio_encoder(), "precision", "float32")

    @encoder_precision.setter
    def encoder_precision(self, precision: str) -> None:
        encoder = self._audio_encoder()
        if precision not in PRECISIONS:
            raise ConfigError(f"no encoder precision is called {precision!r}; there are {' and '.join(PRECISIONS)}")
        if isinstance(encoder, WhisperFrames):
            encoder.set_precision(precision)
        elif precision != "float32":
            raise ConfigError(f"{encoder.name}: hears in float32; only Whisper's encoder can hear in {precision}")

    def _audio_encoder(self) -> FrozenEncoder:
        router: Any = self[0]
        return router.sub_modules["audio"][0]

    def score(self, audio: Sequence[Any], surfaces: Sequence[str]) -> np.ndarray:
        """scores[B, N] of audio clips (float arrays at 16 kHz, {"array", "sampling_rate"}, or paths) against surfaces.

        Of alignment where that is the interaction, each surface as the best of its spellings, else cosines. These rank
        surfaces of one clip. Where the run's index has a background, alignment scores here are not those of evaluation
        and `earmark search`, which weigh a term against it: a run's `rejection_threshold` and `calibration` do not
        apply. InputError if a surface cannot be spelled.
        """
        self.eval()  # as `encode` does: a model that was just loaded drops out
        router: Any = self[0]
        with torch.inference_mode():
            # Not the router's own `preprocess`: it takes a path for text, and a {"array"} for the name of a route.
            heard = hear(self, router.sub_modules["audio"][0].preprocess(list(audio)))
            if self.term_units is None:
                return (heard["sentence_embedding"] @ embed_surfaces(self, list(surfaces)).T).cpu().numpy()
            ways = [self.term_units.known_spellings(surface) for surface in surfaces]
            spelled = batch_to_device(pad_units([ids for spellings in ways for ids in spellings]), self.device)
            emitted = emissions(heard["unit_log_probs"], heard["frame_lengths"])
            scores = alignment_scores(emitted, spelled["units"], spelled["unit_counts"]).cpu().numpy()
            return np.maximum.reduceat(scores, np.cumsum([0, *map(len, ways[:-1])]), axis=1)


def load_retriever(folder: Path) -> TermRetriever:
    """Load a trained retriever, in evaluation mode on the CPU or GPU at hand. InputError if `folder` holds none."""
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder}: holds no trained retriever (no modules.json); run the train stage")
    return TermRetriever(str(folder), local_files_only=True).eval()


def pooled_retriever(encoder: FrozenEncoder, head: AudioHead, tower: SpellingTower | TextModelTower) -> TermRetriever:
    """An untrained retriever that compares one vector of a chunk with one of a term."""
    return _pooled([encoder, head], tower)


def language_model_retriever(
    encoder: Qwen2AudioTowerFrames,
    language_model: Qwen2LanguageModel,
    projection: MeanProjection,
    tower: Qwen2TextTower,
) -> TermRetriever:
    """The same, both vectors from the language model that is behind the encoder. (`tower` shares `language_model`.)"""
    return _pooled([encoder, language_model, projection], tower)


def _pooled(audio: list[Module], text: Module) -> TermRetriever:
    return TermRetriever(modules=[_router(audio, text), Normalize()], similarity_fn_name="dot")


def alignment_retriever(encoder: FrozenEncoder, head: UnitHead, units: TermUnits) -> TermRetriever:
    """An untrained retriever that lays a term's units over a chunk's frames."""
    ngrams = UnitNgrams(len(units.inventory))
    router = _router([encoder, head, ngrams], units)
    return TermRetriever(modules=[router], similarity_fn_name="dot")


def _router(audio: list[Module], text: Module) -> Router:
    return Router({"audio": audio, "text": [text]}, default_route=None, allow_empty_key=False)


def hear(model: BaseModel, features: dict[str, Any]) -> dict[str, Any]:
    """What the audio route makes of preprocessed clips, or of cached "frames"[B, T, dim] and "frame_lengths"[B].

    "sentence_embedding"[B, dim] and, where the interaction is alignment, "unit_log_probs"[B, T, units + 1]; on the
    model's device.
    """
    return model(batch_to_device({**features, "modality": "audio"}, model.device))


def embed_surfaces(model: BaseModel, surfaces: list[str]) -> torch.Tensor:
    """Vectors[N, dim] of surfaces, on the model's device."""
    features = {**model.preprocess(surfaces), "modality": "text"}
    return model(batch_to_device(features, model.device))["sentence_embedding"]
