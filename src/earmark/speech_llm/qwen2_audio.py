"""Qwen2-Audio: the published model, with LoRA adapters on its language model, its projector trained, or as it is.

The classes and names of weights are those of `transformers`; only the way through them is ours: a clip is heard at its
true length, which gives what the padded original gives, and the loss takes `num_items_in_batch`, without which the
batches of one optimiser step would not weigh alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import GenerationConfig, Qwen2AudioForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from earmark.errors import ConfigError, InputError
from earmark.files import read_json
from earmark.qwen2_audio import encode_tower, load_config, load_pretrained
from earmark.qwen2_audio import load_tokenizer as load_qwen2_audio_tokenizer
from earmark.speech_llm.activation_clamp import clamp_first_q_proj
from earmark.speech_llm.adapters import load_adapter, save_adapter, set_adapter_types
from earmark.speech_llm.clip_features import Qwen2AudioClips
from earmark.speech_llm.labels import ChatLabels
from earmark.speech_llm.lora_targets import adapted_modules, target_names
from earmark.speech_llm.manual_loss import manual_loss
from earmark.speech_llm.model import SpeechLanguageModel, trained_weights
from earmark.speech_llm.quantisation import quantisation
from earmark.speech_llm.settings import ModelSettings

AUDIO_TOKEN = "<|AUDIO|>"  # noqa: S105  # a token of text
# What the published template writes for the first audio of a conversation, in front of the text of the turn.
AUDIO_TEXT = f"Audio 1: <|audio_bos|>{AUDIO_TOKEN}<|audio_eos|>\n"
# The published template (of the Instruct model) for turns of text, for folders that carry none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Qwen2Audio(SpeechLanguageModel):
    """`qwen2_audio` is the stock model, or PEFT's around it. The audio tower never trains."""

    def __init__(self, qwen2_audio: Qwen2AudioForConditionalGeneration | PeftModel, audio_id: int):
        super().__init__()
        self.qwen2_audio, self.audio_id = qwen2_audio, audio_id
        audio = self.speaker.config.audio_config
        self.clips = Qwen2AudioClips(audio.num_mel_bins, audio.max_source_positions)
        self.config = self.speaker.config.text_config
        projector = self.speaker.model.multi_modal_projector
        # The projector as it was published, where it trains: what `projector_movement` measures from.
        self._published = {name: weight.clone() for name, weight in trained_weights(projector).items()}

    @property
    def speaker(self) -> Any:
        model = self.qwen2_audio
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def hear(self, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            frames, _ = encode_tower(self.speaker.model.audio_tower, mel, 2 * states)
        projector = self.speaker.model.multi_modal_projector
        # Not in autocast's half precision: a projector that is float32 computes in it.
        with torch.autocast(frames.device.type, enabled=False):
            return projector(frames.to(projector.linear.weight.dtype))

    def _say(
        self, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None, **given: Any
    ) -> CausalLMOutputWithPast:
        outputs = self.speaker(**given)
        loss = None if labels is None else manual_loss(outputs, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=outputs.logits)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.speaker.model.audio_tower.eval()
        return self

    def save_weights(self, folder: Path) -> list[Path]:
        if isinstance(self.qwen2_audio, PeftModel):
            return save_adapter(self.qwen2_audio, folder)
        return super().save_weights(folder) if self._published else []

    def load_weights(self, folder: Path) -> None:
        if isinstance(self.qwen2_audio, PeftModel):
            load_adapter(self.qwen2_audio, folder)
        elif self._published:
            super().load_weights(folder)

    def projector_movement(self) -> dict[str, Any] | None:
        """How far training has moved the projector, None where it does not train. Of each weight and of all together:
        |new - published| / |published| as `relative_change`, and the `cosine` between the two (None where all were 0).
        """
        if not self._published:
            return None
        now = {n: w.cpu().double() for n, w in trained_weights(self.speaker.model.multi_modal_projector).items()}
        then = {name: weight.double() for name, weight in self._published.items()}
        return {
            **_movement(*(torch.cat([weights[name].flatten() for name in then]) for weights in (then, now))),
            "weights": {name: _movement(then[name].flatten(), now[name].flatten()) for name in then},
        }


def _movement(then: torch.Tensor, now: torch.Tensor) -> dict[str, float | None]:
    if not then.any():  # neither is defined
        return {"relative_change": None, "cosine": None}
    change = ((now - then).norm() / then.norm()).item()
    return {"relative_change": change, "cosine": nn.functional.cosine_similarity(then, now, dim=0).item()}


def load_chat(source: str) -> ChatLabels:
    """The conversations of a Qwen2-Audio's tokenizer. ConfigError if there is none, or none that knows audio."""
    tokenizer = load_qwen2_audio_tokenizer(source)
    tokenizer.chat_template = _published_template(source) or tokenizer.chat_template or CHAT_TEMPLATE
    return ChatLabels(tokenizer, AUDIO_TOKEN, AUDIO_TEXT)


def _published_template(source: str) -> str | None:
    """The template of the model's processor, which the published model has in a file of its own."""
    # Without a network, what is not in the cache is not there.
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    path = cached_file(source, "chat_template.json", **quiet)
    if path is None:
        return None
    try:
        template = read_json(Path(path))["chat_template"]
    except (InputError, TypeError, KeyError):
        template = None
    if not isinstance(template, str):
        raise ConfigError(
            f"{path}: not a JSON object with the text chat_template; copy or download the model again, or remove the "
            "file, and the tokenizer's template, or else that of Qwen2-Audio-7B-Instruct, is taken"
        )
    return template


def lora_pattern(targets: str) -> str:
    """PEFT's pattern for layers of the language model: plain names would also adapt the audio tower's of that name."""
    names = "|".join(re.escape(name) for name in target_names(targets))
    return rf"^(?:model\.)?language_model\.(?:.*\.)?(?:{names})$"


def build_model(settings: ModelSettings, audio_id: int, seed: int) -> Qwen2Audio:
    """The model on the CPU, new adapters drawn from `seed`, ready for the method of the settings.

    ConfigError if the base cannot be loaded whole, or cannot be quantised here.
    """
    return prepare(_load(settings), settings, audio_id, seed)


def prepare(stock: Qwen2AudioForConditionalGeneration, settings: ModelSettings, audio_id: int, seed: int) -> Qwen2Audio:
    """The stock model as the settings want it, on whichever device it is, meta too. ConfigError for unknown targets."""
    stock.requires_grad_(False)
    # The published one samples and punishes repetition: answers here are the likeliest.
    stock.generation_config = GenerationConfig()
    language_model = stock.model.language_model
    if settings.gradient_checkpointing:
        language_model.activation_checkpointing_enable()
    model: Any = stock
    if settings.method == "lora":
        for layer in language_model.layers:
            adapted_modules(layer, settings.lora_targets)
        config = LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # peft divides it by r
            lora_dropout=settings.lora_dropout,
            target_modules=lora_pattern(settings.lora_targets),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(stock, config)
        set_adapter_types(model, fp32=settings.lora_fp32, init_scale=settings.lora_init_scale)
    elif settings.method == "projector":
        projector = stock.model.multi_modal_projector.requires_grad_(True)
        if settings.projector_fp32:
            projector.float()
    if settings.clamp_q_proj_input:
        clamp_first_q_proj(language_model, settings.clamp_q_proj_input)
    return Qwen2Audio(model, audio_id)


def _load(settings: ModelSettings) -> Qwen2AudioForConditionalGeneration:
    source = settings.qwen2_audio_model
    assert source is not None
    load_config(source)  # so that another kind of model is told as such
    automatic = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype = automatic if settings.qwen2_audio_dtype == "auto" else getattr(torch, settings.qwen2_audio_dtype)
    options: dict[str, Any] = {}
    if quantised := settings.load_in_4bit or settings.load_in_8bit:
        kept = ["audio_tower", "multi_modal_projector", "lm_head"]
        options["quantization_config"] = quantisation(settings, dtype, kept=kept)
    try:
        model = load_pretrained(Qwen2AudioForConditionalGeneration, source, dtype, **options)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"{source}: Qwen2-Audio could not be loaded ({(str(error).splitlines() or ['no memory'])[0]}). The 7B "
            "model takes 17 GB in bfloat16 and 34 GB in float32: give it more memory, or take load_in_4bit"
        ) from None
    if quantised:
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model
