"""All that a fine-tuning can be told, one field a flag: the field's help is the flag's documentation.

Booleans are given as `--use_lora`, `--use_lora true`, `--use_lora false`, or `--no_use_lora` where the default is true.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from earmark.errors import ConfigError

Architecture = Literal["whisper_qwen3", "qwen2_audio"]
Method = Literal["lora", "projector", "none"]

ARCHITECTURES: tuple[Architecture, ...] = ("whisper_qwen3", "qwen2_audio")
_BASES_OF = {"whisper_qwen3": ("whisper_model", "qwen3_model"), "qwen2_audio": ("qwen2_audio_model",)}
BASES = {
    "whisper_model": "a Whisper, or bundled:whisper-tiny.en",
    "qwen3_model": "a Qwen3 with its tokenizer",
    "qwen2_audio_model": "a Qwen2-Audio with its tokenizer, such as Qwen/Qwen2-Audio-7B-Instruct",
}
_QWEN2_AUDIO_ONLY = ("qwen2_audio_model", "method", "i_know_this_overwrites_alignment", "qwen2_audio_dtype")
_WHISPER_QWEN3_ONLY = (
    "whisper_model", "qwen3_model", "freeze_whisper", "whisper_cpu", "projector", "projector_stack", "projector_scale",
    "use_lora", "train_qwen3_layers", "qwen3_dtype",
)  # fmt: skip
_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "lora_fp32", "lora_init_scale", "lora_grad_clip")
# What counts even where nothing trains.
_EVALUATING = {
    "output_dir", "per_device_train_batch_size", "dataloader_num_workers", "seed", "resume", "checkpoint_minutes",
}  # fmt: skip


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ModelSettings:
    """Which models, which of their parts train, in which types."""

    _argument_group_name = "model"

    architecture: Literal["whisper_qwen3", "qwen2_audio"] = _flag(
        "whisper_qwen3", "whisper_qwen3: a Whisper's encoder, a new projector and a Qwen3 | qwen2_audio: a Qwen2-Audio"
    )
    whisper_model: str | None = _flag(None, "whisper_qwen3: folder or hub id of a Whisper; its encoder is used")
    qwen3_model: str | None = _flag(
        None, "whisper_qwen3: folder or hub id of a Qwen3 causal language model with its tokenizer"
    )
    qwen2_audio_model: str | None = _flag(
        None, "qwen2_audio: folder or hub id of a Qwen2-Audio, such as Qwen/Qwen2-Audio-7B-Instruct"
    )
    method: Literal["lora", "projector", "none"] = _flag(
        "lora",
        "qwen2_audio: what trains. lora: adapters on the language model | projector: the published projector itself | "
        "none: nothing; the model is evaluated as it is",
    )
    i_know_this_overwrites_alignment: bool = _flag(
        False,
        "qwen2_audio: method projector changes what the published model learned about how audio and words go together; "
        "it must be allowed by this flag",
    )
    qwen2_audio_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag(
        "auto", "qwen2_audio: type of its frozen weights; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    freeze_whisper: bool = _flag(True, "leave Whisper's encoder as it is")
    whisper_cpu: bool = _flag(False, "run Whisper on the CPU, to save GPU memory; it must be frozen")
    projector: Literal["linear", "mlp"] = _flag("mlp", "one linear layer, or two with GELU between")
    projector_stack: int = _flag(5, "encoder states of 20 ms put side by side in one audio token")
    projector_fp32: bool = _flag(True, "keep and run the projector in float32")
    projector_scale: float = _flag(0.1, "factor on the projector's Xavier initialisation: a quiet start")
    use_lora: bool = _flag(False, "whisper_qwen3: train LoRA adapters on Qwen3 (PEFT)")
    lora_r: int = _flag(8, "rank of the adapters")
    lora_alpha: float = _flag(16.0, "adapters are scaled by lora_alpha / lora_r")
    lora_dropout: float = _flag(0.05, "dropout in front of the adapters")
    lora_targets: str = _flag("q_proj,v_proj", "which of the language model's linear layers get adapters, by comma")
    lora_fp32: bool = _flag(
        True,
        "keep the adapters in float32 whatever the language model's type is; else they take its type",
    )
    lora_init_scale: float = _flag(1.0, "factor on lora_A's initialisation (lora_B begins at zero)")
    train_qwen3_layers: int = _flag(0, "train that many of Qwen3's last layers whole, in float32; LoRA leaves them out")
    qwen3_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag(
        "auto",
        "type of Qwen3's frozen weights; auto: bfloat16 on a GPU, float32 on a CPU; float16 is refused for training: "
        "small gradients are zero in it",
    )
    load_in_4bit: bool = _flag(False, "quantise the language model to 4 bit (QLoRA); needs bitsandbytes and a GPU")
    load_in_8bit: bool = _flag(False, "quantise the language model to 8 bit; needs bitsandbytes and a GPU")
    device_map: str | None = _flag(
        None, "spread Qwen3 over the GPUs of one process: auto, balanced or sequential; default: one device"
    )
    gradient_checkpointing: bool = _flag(
        False, "compute activations again in the backward pass instead of keeping them: less memory, more time"
    )
    clamp_q_proj_input: float = _flag(
        0.0, "clamp the first layer's normalised states, as its q_proj alone reads them, to plus or minus this; 0: off"
    )

    def __post_init__(self) -> None:
        for name in _BASES_OF[self.architecture]:
            if not getattr(self, name):
                raise ConfigError(f"{name} is not set; give a folder or hub id: {BASES[name]}")
        if self.method == "projector" and not self.i_know_this_overwrites_alignment:
            raise ConfigError(
                "method projector overwrites what the published projector knows of how audio and words go together, "
                "learned from far more data than most have; take method lora, or set i_know_this_overwrites_alignment"
            )
        _at_least(1, projector_stack=self.projector_stack, lora_r=self.lora_r)
        _at_least(0, train_qwen3_layers=self.train_qwen3_layers, clamp_q_proj_input=self.clamp_q_proj_input)
        _over_zero(
            projector_scale=self.projector_scale, lora_init_scale=self.lora_init_scale, lora_alpha=self.lora_alpha
        )
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout is {self.lora_dropout}; give a share from 0 to less than 1")
        if self.whisper_cpu and not self.freeze_whisper:
            raise ConfigError("whisper_cpu runs Whisper without training it; set freeze_whisper as well")
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("load_in_4bit and load_in_8bit exclude each other; set one of them")
        quantised = self.load_in_4bit or self.load_in_8bit
        if quantised and self.architecture == "whisper_qwen3" and (not self.use_lora or self.train_qwen3_layers):
            raise ConfigError("quantised weights cannot train; set use_lora, and train_qwen3_layers to 0")


@dataclass(frozen=True)
class DataSettings:
    """Which conversations, and which of them are good enough."""

    _argument_group_name = "data"

    train_json: str = field(metadata={"help": "JSON lines, or one JSON list, to train on"})
    valid_json: str | None = _flag(None, "the same, to compute the loss on after each epoch")
    data_mode: Literal["conversation", "flat"] = _flag(
        "conversation",
        'conversation: {"conversations": [{"from", "value"}, ...]} with one <audio>/path</audio> in one of the turns; '
        'flat: {"audio", "text", "prompt"?}',
    )
    max_length: int = _flag(2048, "longest sequence, in tokens, audio tokens among them")
    all_masked: Literal["reject", "keep_last"] = _flag(
        "reject",
        "where max_length cuts all of the assistant's tokens off: reject the line, or take tokens out in front of the "
        "assistant's last turn instead (never audio)",
    )
    min_valid_labels: int = _flag(2, "reject a line with fewer tokens that count in the loss than this")
    check_audio: bool = _flag(
        True, "decode all audio before the first step and reject lines whose audio is damaged; else read its headers"
    )
    max_rejected_fraction: float = _flag(0.1, "fail when more of the lines than this are rejected")

    def __post_init__(self) -> None:
        _at_least(1, max_length=self.max_length, min_valid_labels=self.min_valid_labels)
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ConfigError(f"max_rejected_fraction is {self.max_rejected_fraction}; give a share from 0 to 1")


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, and where to."""

    _argument_group_name = "training"

    output_dir: str = field(metadata={"help": "folder for the trained weights, reports and checkpoints"})
    num_train_epochs: float = _flag(3.0, "passes over the data")
    per_device_train_batch_size: int = _flag(4, "conversations in a batch of one device")
    gradient_accumulation_steps: int = _flag(1, "batches to one optimiser step")
    learning_rate: float = _flag(1e-4, "AdamW's, at its highest")
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = _flag("cosine", "its course after warm-up")
    warmup_ratio: float = _flag(0.03, "share of the steps in which it rises from zero")
    weight_decay: float = _flag(0.0, "AdamW's")
    save_steps: int = _flag(0, "optimiser steps between two checkpoints; 0: one an epoch")
    checkpoint_minutes: float = _flag(
        15.0,
        "also write a checkpoint so long after the last one, shortly before a Slurm job ends, and on SIGTERM, then "
        "ending the training; 0: none of these",
    )
    save_total_limit: int = _flag(2, "checkpoints that are kept, at least 2: the newest may be half written")
    resume: bool = _flag(
        True,
        "go on from the newest whole checkpoint of the same settings, data and versions; else remove what is there",
    )
    resume_tolerance: float = _flag(
        1e-3, "relative: how far the loss of the checked step after resuming may be from what the checkpoint recorded"
    )
    logging_steps: int = _flag(10, "optimiser steps to a line of train_metrics.jsonl")
    dataloader_num_workers: int = _flag(0, "processes that read audio ahead")
    seed: int = _flag(0, "of initial weights, order and dropout")

    def __post_init__(self) -> None:
        _at_least(
            1, per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps, logging_steps=self.logging_steps,
        )  # fmt: skip
        # The one before must stay for as long as the newest is half written.
        _at_least(2, save_total_limit=self.save_total_limit)
        _at_least(
            0, save_steps=self.save_steps, checkpoint_minutes=self.checkpoint_minutes, warmup_ratio=self.warmup_ratio,
            weight_decay=self.weight_decay, resume_tolerance=self.resume_tolerance,
        )  # fmt: skip
        _over_zero(learning_rate=self.learning_rate, num_train_epochs=self.num_train_epochs)
        if self.warmup_ratio >= 1:
            raise ConfigError(f"warmup_ratio is {self.warmup_ratio}; give a share from 0 to less than 1")


@dataclass(frozen=True)
class StabilitySettings:
    """What keeps a training from blowing up, and what tells why it did."""

    _argument_group_name = "stability"

    max_grad_norm: float = _flag(1.0, "clip gradients to this norm; 0: off")
    lora_grad_clip: float = _flag(0.0, "clip the adapters' gradients by themselves, to this norm; 0: with all others")
    freeze_projector_steps: int = _flag(0, "leave the projector as it is for so many optimiser steps")
    early_lr_factor: float = _flag(1.0, "factor on the learning rate in the first early_lr_steps")
    early_lr_steps: int = _flag(0, "how many optimiser steps that is")
    on_nan: Literal["stop", "skip"] = _flag(
        "stop", "a loss or gradient that is not finite stops the run, or skips that step (and is counted)"
    )
    max_nan_skips: int = _flag(10, "with on_nan skip: stop after so many skipped steps on end")
    grad_norm_ema_decay: float = _flag(0.0, "watch the gradients' norm against its moving average; 0: off, else 0.99")
    grad_norm_spike: float = _flag(4.0, "log a norm over so many times the average")
    grad_norm_lr_reaction: bool = _flag(False, "and lower the learning rate of that step in proportion")
    manual_loss: bool = _flag(
        False, "compute the loss outside the model, at labelled positions alone (less memory, the same value)"
    )
    debug_loss: bool = _flag(False, "log the loss and the number of labels of each batch")

    def __post_init__(self) -> None:
        _at_least(
            0, max_grad_norm=self.max_grad_norm, lora_grad_clip=self.lora_grad_clip, max_nan_skips=self.max_nan_skips,
            freeze_projector_steps=self.freeze_projector_steps, early_lr_steps=self.early_lr_steps,
        )  # fmt: skip
        _over_zero(early_lr_factor=self.early_lr_factor, grad_norm_spike=self.grad_norm_spike)
        if not 0 <= self.grad_norm_ema_decay < 1:
            raise ConfigError(f"grad_norm_ema_decay is {self.grad_norm_ema_decay}; give 0, or a share below 1")
        if self.grad_norm_lr_reaction and not self.grad_norm_ema_decay:
            raise ConfigError("grad_norm_lr_reaction needs an average to react to; set grad_norm_ema_decay (say 0.99)")


@dataclass(frozen=True)
class Settings:
    """The four groups together."""

    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    stability: StabilitySettings

    def __post_init__(self) -> None:
        groups = (self.model, self.data, self.train, self.stability)
        values = {item.name: (getattr(group, item.name), item.default) for group in groups for item in fields(group)}
        model = self.model
        for name, reason in unread(model.architecture, method=model.method, use_lora=model.use_lora).items():
            value, default = values[name]
            if value != default:
                raise ConfigError(f"{name} is {value}, but {reason}; leave it out")
        if self.model.architecture != "whisper_qwen3":
            return
        others_train = self.model.use_lora or self.model.train_qwen3_layers or not self.model.freeze_whisper
        if self.stability.freeze_projector_steps and not others_train:
            raise ConfigError(
                "freeze_projector_steps leaves nothing that trains; set it to 0, or set use_lora or train_qwen3_layers"
            )


def unread(architecture: Architecture, *, method: Method, use_lora: bool) -> dict[str, str]:
    """The flags that say nothing about such a training, with the reason."""
    told: dict[str, str] = {}
    if architecture == "whisper_qwen3":
        told |= dict.fromkeys(_QWEN2_AUDIO_ONLY, "it is a flag of architecture qwen2_audio")
        if not use_lora:
            told |= dict.fromkeys(_ADAPTERS, "use_lora is not set, so there are no adapters")
        return told
    told |= dict.fromkeys(_WHISPER_QWEN3_ONLY, "it is a flag of architecture whisper_qwen3")
    told["freeze_projector_steps"] = "in qwen2_audio nothing trains beside the projector, or the projector does not"
    told["device_map"] = "qwen2_audio runs on one device; load_in_4bit takes less memory"
    if method != "lora":
        told |= dict.fromkeys(_ADAPTERS, f"method {method} trains no adapters")
    if method == "projector":
        told |= dict.fromkeys(("load_in_4bit", "load_in_8bit"), "method projector needs the weights as they are")
    else:
        told |= dict.fromkeys(("projector_fp32", "i_know_this_overwrites_alignment"), "the projector does not train")
    if method == "none":
        training = {item.name for group in (TrainSettings, StabilitySettings) for item in fields(group)}
        training |= {"gradient_checkpointing"}
        told |= dict.fromkeys(sorted(training - _EVALUATING), "method none trains nothing")
    return told


def parse_settings(arguments: list[str], program: str = "earmark finetune") -> Settings:
    """The settings in command-line `arguments`. ConfigError where values do not go together; argparse's own exits."""
    from transformers import HfArgumentParser

    groups = [ModelSettings, DataSettings, TrainSettings, StabilitySettings]
    parser = HfArgumentParser(
        groups,  # type: ignore[arg-type]  # any iterable of dataclasses
        prog=program,
        description="Fine-tune a speech language model on conversations about audio: a Whisper's encoder, a projector "
        "and a Qwen3, or a Qwen2-Audio.",
    )
    return Settings(*parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False))


def as_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values, by group."""
    return dataclasses.asdict(settings)


def _at_least(lowest: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= lowest:  # NaN too
            raise ConfigError(f"{name} is {value}; give at least {lowest}")


def _over_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}; give more than 0")
