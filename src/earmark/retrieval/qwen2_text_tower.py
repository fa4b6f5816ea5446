"""The text route with Qwen2-Audio: a term through the language model that hears the audio too, one vector out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from sentence_transformers.base import BaseModel
from sentence_transformers.base.modules import InputModule
from torch import nn
from transformers import PreTrainedTokenizerBase

from earmark.errors import EarmarkError, InputError
from earmark.retrieval.module_files import SavedModule
from earmark.retrieval.qwen2_audio import text_prompt_ids, text_states
from earmark.retrieval.qwen2_language_model import Qwen2LanguageModel


class Qwen2TextTower(SavedModule, InputModule):
    """Embeds a surface: the mean of the language model's states over its tokens, projected to `embedding_dim`.

    `prompt` stands before the surface and is not part of the mean. It should not be empty: such models use their first
    token as a place for attention to rest on, so its state says little of what it is, and many terms are one token.

    The language model belongs to a `Qwen2LanguageModel`, whose adapters and trained layers act on terms as on audio. It
    is no submodule of this one: its weights are counted, moved and saved once. A loaded tower finds it in the model
    that both are parts of.
    """

    tokenizer: PreTrainedTokenizerBase
    config_keys = ["hidden_dim", "embedding_dim", "prompt"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, hidden_dim: int, embedding_dim: int, prompt: str):
        super().__init__()
        self.hidden_dim, self.embedding_dim, self.prompt = hidden_dim, embedding_dim, prompt
        self.projection = nn.Linear(hidden_dim, embedding_dim)
        self._prompt_ids: list[int] = []
        self._owner: tuple[Qwen2LanguageModel, ...] = ()  # in a tuple, where torch does not register it

    @classmethod
    def of(cls, owner: Qwen2LanguageModel, embedding_dim: int, prompt: str) -> Self:
        """A new tower on the language model of `owner`."""
        tower = cls(owner.hidden_dim, embedding_dim, prompt)
        tower.share(owner)
        return tower

    def share(self, owner: Qwen2LanguageModel) -> None:
        """Use the language model of `owner`. EarmarkError if its states are not as wide as the projection takes."""
        if owner.hidden_dim != self.hidden_dim:
            raise EarmarkError(
                f"{owner.source} has states of {owner.hidden_dim} numbers, the text tower takes {self.hidden_dim}"
            )
        self._owner = (owner,)
        self.tokenizer = owner.tokenizer
        self._prompt_ids = text_prompt_ids(self.tokenizer, self.prompt)

    def on_model_ready(self, model: BaseModel) -> None:
        if not self._owner:
            owners = [module for module in model.modules() if isinstance(module, Qwen2LanguageModel)]
            if len(owners) != 1:
                raise EarmarkError(f"the text tower shares one Qwen2LanguageModel; the model holds {len(owners)}")
            self.share(owners[0])

    @property
    def owner(self) -> Qwen2LanguageModel:
        """The module whose language model this tower uses. EarmarkError before there is one."""
        if not self._owner:
            raise EarmarkError("the text tower has no language model yet; call share() with a Qwen2LanguageModel")
        return self._owner[0]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs` are surfaces; InputError if one is empty."""
        surfaces = [str(item).strip() for item in inputs]
        if not all(surfaces):
            raise InputError(f"surface {surfaces.index('')} of {len(surfaces)} is empty; remove it")
        self.owner  # noqa: B018 (raises where the tokenizer would be missing)
        tokens = self.tokenizer(surfaces, add_special_tokens=False, padding=True, return_tensors="pt")
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        mask = features["attention_mask"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.owner.trained)):
            states = text_states(self.owner.base, features["input_ids"], mask, self._prompt_ids)
        mean = states.float().sum(dim=1) / mask.to(states.device).sum(dim=1, keepdim=True)
        features["sentence_embedding"] = self.projection(mean)
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dim
