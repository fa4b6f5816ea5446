"""The text route through a sentence model: a term's meaning in, by any Sentence Transformers model, one vector out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import nn

from earmark.errors import ConfigError, InputError, first_line
from earmark.retrieval.module_files import SavedModule, open_weights
from earmark.retrieval.text_tower import SpellingTower

log = logging.getLogger(__name__)

_TEXT_MODEL = "text_model"  # the folder of the saved text model
_SPELLING = "spelling_"  # before the names of the spelling tower's features


class TextModelTower(SavedModule, InputModule):
    """Embeds a surface: the vector of a frozen text model, projected; with `spelling`, plus that of a SpellingTower.

    A sentence model knows what words mean, not how they sound: of a name that it has not read it knows little that
    speech would tell, and two words of one meaning, which sound nothing alike, are close to it. So it serves where
    terms are found by what is said about them, by aliases or in other languages; else fused with spelling, whose sizes
    `spelling` holds as `SpellingTower` takes them, `embedding_dim` left out.

    Texts go through the model's own `encode`, so any kind of model will do, and its default prompt is used. They do so
    where a batch is made: as the model is frozen, its vectors (unit length, `text_dim` numbers) are features. They are
    not remembered: their last bits depend on what was encoded with them, and a training that is killed and goes on
    would no longer end as one that is not. The model is saved whole beside the trained weights; `source` is where it
    came from.
    """

    config_keys = [  # noqa: RUF012 (the base class's protocol)
        "source", "text_dim", "hidden_dim", "embedding_dim", "dropout", "spelling",
    ]  # fmt: skip

    def __init__(
        self,
        source: str,
        text_dim: int,
        hidden_dim: int,
        embedding_dim: int,
        dropout: float,
        spelling: Mapping[str, Any] | None = None,
        *,
        text_model: SentenceTransformer,
    ):
        super().__init__()
        self.source, self.text_dim = source, text_dim
        self.hidden_dim, self.embedding_dim, self.dropout = hidden_dim, embedding_dim, dropout
        self.spelling = dict(spelling) if spelling is not None else None
        self.text_model = text_model.float().requires_grad_(False).eval()
        self.projection = nn.Sequential(
            nn.Linear(text_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, embedding_dim)
        )
        self.spelling_tower = (
            SpellingTower(**self.spelling, embedding_dim=embedding_dim) if self.spelling is not None else None
        )
        self._told = False  # that the model knows nothing of some text

    @classmethod
    def pretrained(
        cls,
        source: str,
        *,
        hidden_dim: int,
        embedding_dim: int,
        dropout: float,
        spelling: Mapping[str, Any] | None = None,
    ) -> Self:
        """A new tower on the text model that `source`, a folder or hub id, names; no code of a model folder is run.

        ConfigError if it cannot be loaded, or gives no vector for a text.
        """
        if Path(source).is_dir() and not Path(source, "modules.json").is_file():
            raise ConfigError(
                f"{source}: holds no modules.json, so it is no Sentence Transformers model, and how to pool its states "
                "would be guessed. Give a folder or hub id of one"
            )
        try:
            text_model = SentenceTransformer(source, device="cpu", trust_remote_code=False)
        except Exception as error:  # what a folder of any kind makes its loader raise has no common class
            raise ConfigError(
                f"{source}: no text model could be loaded ({first_line(error)}). Give a folder or hub id of a "
                "Sentence Transformers model that needs no code of its own"
            ) from error
        try:
            (vector,) = np.asarray(text_model.encode(["a"], show_progress_bar=False))
            (text_dim,) = vector.shape
        except Exception as error:
            raise ConfigError(
                f"{source}: gives no vector for a text ({first_line(error)}). Give a Sentence Transformers model that "
                "embeds text"
            ) from error
        return cls(source, text_dim, hidden_dim, embedding_dim, dropout, spelling, text_model=text_model)

    def trained_parts(self) -> dict[str, nn.Module]:
        """What trains, by name: all but the text model."""
        parts: dict[str, nn.Module] = {"text_projection": self.projection}
        return parts if self.spelling_tower is None else {**parts, "spelling_tower": self.spelling_tower}

    def train(self, mode: bool = True) -> Self:
        """The text model stays in evaluation mode: it is frozen."""
        super().train(mode)
        self.text_model.eval()
        return self

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs` are surfaces; InputError if one is empty, or its vector is not finite."""
        surfaces = [str(item).strip() for item in inputs]
        if not all(surfaces):
            raise InputError(f"surface {surfaces.index('')} of {len(surfaces)} is empty; remove it")
        features = {"text_vectors": self._embedded(surfaces)}
        if self.spelling_tower is not None:
            spelled = self.spelling_tower.preprocess(surfaces)
            features |= {_SPELLING + name: value for name, value in spelled.items()}
        return features

    def _embedded(self, surfaces: list[str]) -> torch.Tensor:
        # Outside of mixed precision, so that a vector is the same in training and in search.
        with torch.autocast(self.text_model.device.type, enabled=False):
            vectors = self.text_model.encode(surfaces, normalize_embeddings=True, show_progress_bar=False)
        if not np.isfinite(vectors).all():
            (row, *_) = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            raise InputError(f"{self.source} makes no vector of {surfaces[row]!r}; choose another text model")
        if not (self._told or vectors.any(axis=1).all()):
            self._told = True
            text = surfaces[int(np.flatnonzero(~vectors.any(axis=1))[0])]
            log.warning(
                "%s knows nothing of %r, nor perhaps of other texts, which are then all alike to it; choose a text "
                "model that knows their script, or fuse it with spelling", self.source, text,
            )  # fmt: skip
        # A copy: what comes from `encode` may be made in inference mode, behind which no gradient flows.
        return torch.from_numpy(np.array(vectors))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        embedding = self.projection(features["text_vectors"])
        if self.spelling_tower is not None:
            own = {name: value for name, value in features.items() if name.startswith(_SPELLING)}
            spelled = self.spelling_tower({name.removeprefix(_SPELLING): value for name, value in own.items()})
            embedding = embedding + spelled["sentence_embedding"]
        features["sentence_embedding"] = embedding
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dim

    def save_torch_weights(self, output_path: str, safe_serialization: bool = True) -> None:
        """Write the trained weights, and the text model into a folder beside them."""
        save_model(nn.ModuleDict(self.trained_parts()), str(Path(output_path, "model.safetensors")))
        folder = Path(output_path, _TEXT_MODEL)
        self.text_model.save(str(folder), create_model_card=False, safe_serialization=True)
        for weights in folder.rglob("model.safetensors"):
            open_weights(weights.parent, str(Path(output_path, self.config_file_name).resolve()))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read what `save` wrote; missing and unexpected weights are errors. InputError if the text model is gone."""
        hub = (token, cache_folder, revision, local_files_only)
        folder = cls.load_dir_path(model_name_or_path, Path(subfolder, _TEXT_MODEL).as_posix(), *hub)
        # Without this file a folder would be taken for a plain language model, and its pooling made up.
        if folder is None or not Path(folder, "modules.json").is_file():
            raise InputError(f"{model_name_or_path}: the text model is missing; copy the folder whole, or train again")
        # Whatever the caller trusts or asks for of the retriever: the text model has no code, and is frozen in float32.
        text_model = SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=False)
        defaults = {**(init_defaults or {}), "text_model": text_model}
        return super().load(model_name_or_path, subfolder, *hub, init_defaults=defaults, **kwargs)

    @classmethod
    def load_torch_weights(cls, *args: Any, model: Self | None = None, **kwargs: Any) -> Any:
        """Read the trained weights, into `model` if it is given."""
        if model is None:
            return super().load_torch_weights(*args, **kwargs)
        super().load_torch_weights(*args, **{**kwargs, "model": nn.ModuleDict(model.trained_parts())})
        return model
