"""Speech language models: audio in place of a run of placeholder tokens."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from earmark.artifacts import atomic_path
from earmark.errors import ConfigError
from earmark.speech_llm.clip_encoder import ClipEncoder
from earmark.speech_llm.clip_features import ClipFeatures, WhisperClips
from earmark.speech_llm.projector import AudioProjector

WEIGHTS = "trained.safetensors"


class SpeechLanguageModel(nn.Module, ABC):
    """A causal language model that hears: what the architectures share.

    A batch is input_ids[B, L] in which each audio token stands as `audio_id`, attention_mask[B, L] (padding on either
    side), and mel[B, bins, M] with states[B] from `clips.log_mel`. Labels are shifted in the model, as in
    `transformers`.
    """

    main_input_name = "input_ids"
    # For Trainer: the loss takes num_items_in_batch, and labels are shifted, so they are counted from the second on.
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"

    audio_id: int
    clips: ClipFeatures
    is_spread = False  # over several devices

    @property
    @abstractmethod
    def speaker(self) -> Any:
        """The causal language model of `transformers`."""

    @property
    def token_table(self) -> torch.Tensor:
        """The language model's embeddings[vocabulary, hidden]: tells its device and type."""
        return self.speaker.get_input_embeddings().weight

    @abstractmethod
    def hear(self, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """audio[B, T, hidden]: what stands in for a token's embedding, of each clip's first tokens."""

    def embed(self, input_ids: torch.Tensor, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """embeddings[B, L, hidden]: the language model's for text, the projector's for audio.

        ValueError if a row's placeholders are not as many as its audio tokens.
        """
        is_audio = input_ids == self.audio_id
        # The placeholder's own row is never used, and may lie beyond the table.
        embedded = self.speaker.get_input_embeddings()(input_ids.masked_fill(is_audio, 0))
        audio = self.hear(mel, states).to(embedded.device, embedded.dtype)
        counts = torch.tensor([self.clips.audio_tokens(count) for count in states.tolist()], device=audio.device)
        real = torch.arange(audio.shape[1], device=audio.device) < counts[:, None]
        if not torch.equal(is_audio.sum(1), counts):
            raise ValueError(f"placeholders {is_audio.sum(1).tolist()} do not match audio tokens {counts.tolist()}")
        return embedded.masked_scatter(is_audio[:, :, None], audio[real])

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mel: torch.Tensor,
        states: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """logits[B, L, vocabulary], and the loss where labels[B, L] are given.

        The loss is the mean over labelled tokens, or their sum divided by `num_items_in_batch`.
        """
        embedded = self.embed(input_ids, mel, states)
        with self._computing(embedded):
            return self._say(
                labels,
                num_items_in_batch,
                inputs_embeds=embedded,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            )

    @abstractmethod
    def _say(
        self, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None, **given: Any
    ) -> CausalLMOutputWithPast:
        """Run the language model on `given`, its own arguments; logits and loss as `forward` says."""

    @torch.inference_mode()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mel: torch.Tensor,
        states: torch.Tensor,
        *,
        end_id: int,
        max_new_tokens: int,
    ) -> torch.Tensor:
        """The likeliest answers, token by token: ids[B, at most max_new_tokens], filled up with `end_id`.

        Rows must be padded on the left.
        """
        embedded = self.embed(input_ids, mel, states)
        with self._computing(embedded):
            return self.speaker.generate(
                inputs_embeds=embedded,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=end_id,
                pad_token_id=end_id,
            )

    def save_weights(self, folder: Path) -> list[Path]:
        """Write what trains, and nothing else, to a folder; the files, none where nothing trains."""
        save_trained(self, folder / WEIGHTS)
        return [folder / WEIGHTS]

    def load_weights(self, folder: Path) -> None:
        """Put what `save_weights` wrote into a model of the same settings. ConfigError as of `load_trained`."""
        load_trained(self, folder / WEIGHTS)

    def projector_movement(self) -> dict[str, Any] | None:
        """How far training has moved a projector that was published; None where none was, or it does not train."""
        return None

    @staticmethod
    def _computing(embedded: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
        """Float32 weights that train compute in the type of a half-precision language model all the same."""
        half = embedded.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(embedded.device.type, embedded.dtype) if half else contextlib.nullcontext()


class WhisperQwen3(SpeechLanguageModel):
    """Whisper's encoder, a projector and Qwen3."""

    def __init__(self, whisper: ClipEncoder, projector: AudioProjector, qwen3: Qwen3ForCausalLM, audio_id: int):
        super().__init__()
        self.whisper, self.projector, self.qwen3, self.audio_id = whisper, projector, qwen3, audio_id
        self.clips = WhisperClips(whisper.encoder.config.num_mel_bins, whisper.max_states, projector.stack)
        self.config = qwen3.config
        devices = getattr(qwen3, "hf_device_map", {})
        self.is_spread = len(set(devices.values())) > 1
        if self.is_spread:
            self.hf_device_map = devices  # Trainer then moves nothing

    @property
    def speaker(self) -> Qwen3ForCausalLM:
        return self.qwen3

    def hear(self, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self.projector(self.whisper(mel, states))

    def _say(
        self, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None, **given: Any
    ) -> CausalLMOutputWithPast:
        counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        return self.qwen3(labels=labels, **given, **counted)


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that train, by name: views, not copies."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: nn.Module, path: Path) -> None:
    """Write what trains in `model`, and nothing else."""
    weights = {name: weight.contiguous() for name, weight in trained_weights(model).items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def load_trained(model: nn.Module, path: Path) -> None:
    """Put what `save_trained` wrote into a model of the same settings.

    ConfigError, and nothing is loaded, if the file lacks a parameter that trains, holds another, or one of another
    shape.
    """
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors ({error}); copy or train it again") from None
    put_weights(saved, trained_weights(model), path)


def put_weights(saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights that were read from `path` into those of the same name.

    ConfigError, and nothing is copied, if one is missing, not wanted or of another shape.
    """
    problems = [
        *_told("missing", wanted.keys() - saved.keys()),
        *_told("unexpected", saved.keys() - wanted.keys()),
        *_told("of another shape", {n for n in wanted.keys() & saved.keys() if wanted[n].shape != saved[n].shape}),
    ]
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}. Load it with the settings and models it was trained with")
    for name, weight in wanted.items():
        weight.copy_(saved[name])


def _told(what: str, names: Iterable[str]) -> list[str]:
    found = sorted(names)
    return [f"{len(found)} weights are {what}, such as {found[0]}"] if found else []
