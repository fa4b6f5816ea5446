"""Fine-tuning from settings to a folder of trained weights."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from earmark.artifacts import atomic_folder, write_json, write_jsonl
from earmark.checkpoint_times import CheckpointTimes, job_end
from earmark.errors import AudioError, ConfigError, InputError
from earmark.files import read_json
from earmark.speech_llm.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from earmark.speech_llm.architectures import build_model, load_chat
from earmark.speech_llm.audit import audit, checkpoint_size, declared
from earmark.speech_llm.batches import Collator, Samples, read_samples
from earmark.speech_llm.checkpoints import is_finished, last_checkpoint, training_key
from earmark.speech_llm.labels import ChatLabels
from earmark.speech_llm.model import WEIGHTS, SpeechLanguageModel
from earmark.speech_llm.nan_monitor import SNAPSHOT, finite_or_none
from earmark.speech_llm.noise import check_speech
from earmark.speech_llm.settings import ModelSettings, Settings, as_dict
from earmark.speech_llm.trainer import SpeechTrainer

log = logging.getLogger(__name__)

SETTINGS = "speech_llm.json"
TOKENIZER = "tokenizer"
METRICS = "train_metrics.jsonl"
AUDIT = "audit.json"
MOVEMENT = "projector_movement.json"
_RESULTS = (SETTINGS, WEIGHTS, ADAPTER_WEIGHTS, ADAPTER_CONFIG, METRICS, AUDIT, MOVEMENT)  # settings first, see below
_ENOUGH_FOR_PROJECTOR = 1000  # conversations
_TIMINGS = ("_runtime", "_per_second")


def finetune(settings: Settings) -> None:
    """Train, and write to `output_dir`:

    trained.safetensors (what was trained, no more), speech_llm.json (settings) and tokenizer/, which `load` takes;
    audit.json (trainable parameters by part, with types, and the size of what was saved), train_metrics.jsonl,
    train_data.json and valid_data.json (lines kept and rejected, labels), train_data.rejected.jsonl and
    valid_data.rejected.jsonl, checkpoints/.

    Of Qwen2-Audio adapters as PEFT has them: adapter_model.safetensors and adapter_config.json; projector_movement.json
    where the projector trains (how far it moved); and with method none no weights, and one line of metrics, the loss on
    the validation data as the model is.

    What an earlier training left there is removed first, unless this one goes on from its checkpoints. The metrics are
    written also where the training fails.

    Under torchrun each process takes its share of every batch. A killed training goes on from its last whole
    checkpoint, and ends with the weights of one that nobody disturbed: bit by bit on a CPU, where that is tested; a
    GPU may sum in another order. EarmarkError where there is nothing to train on, a model cannot be loaded, a parameter
    trains that must not, audio cannot be read, or the training diverges.
    """
    _check_devices(settings.model)
    _check_type(settings.model)
    output = Path(settings.train.output_dir)
    data = [Path(path) for path in (settings.data.train_json, settings.data.valid_json) if path]
    processes = _processes()
    checkpoints = output / "checkpoints" / training_key(settings, data, processes)
    arguments = _training_arguments(settings, checkpoints)
    is_first = arguments.process_index == 0
    with arguments.main_process_first(local=False, desc="clearing the output folder"):
        if is_first:
            _remove_earlier(output, checkpoints, processes, resume=settings.train.resume)
    checkpoint = last_checkpoint(checkpoints, processes)
    chat = load_chat(settings.model)
    model = build_model(settings.model, chat.audio_id, settings.train.seed)
    report = audit(model, declared(model, settings.model))
    with tempfile.TemporaryDirectory(prefix="earmark-data-") as scratch:  # for the reports of the other processes
        train, valid = _read(settings, output if is_first else Path(scratch), chat, model)
    if _trains_published_projector(settings.model):
        _check_enough(train, Path(settings.data.train_json))
    times = CheckpointTimes(settings.train.checkpoint_minutes, job_end() if is_first else None)
    trainer = SpeechTrainer(
        model,
        arguments,
        samples=train,
        valid=valid,
        collator=_collator(model, chat),
        stability=settings.stability,
        folder=output if is_first else output / f"process_{arguments.process_index}",
        resume_tolerance=settings.train.resume_tolerance,
        times=times,
    )
    if is_first:
        write_json(output / AUDIT, report)
        if any("bfloat16" in part["trainable_dtypes"] for part in report["parts"].values()):
            log.warning(
                "weights train in bfloat16: steps below 1/256 of a weight are lost; lora_fp32 and projector_fp32"
            )
        log.info("%d of %d parameters train: %s", report["trainable"], report["parameters"], _shares(report))
    if checkpoint is not None and is_finished(checkpoint):
        log.info("a training of these settings has ended already; its results are written again from %s", checkpoint)
    elif checkpoint is not None:
        log.info("a killed training of these settings goes on from %s", checkpoint)
    try:
        if report["trainable"]:
            with times.heeding_sigterm():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        else:
            trainer.state.epoch = 0.0
            if valid is not None:
                trainer.evaluate()
    except AudioError as error:
        # What comes from a process that reads ahead has its whole traceback in front.
        raise AudioError(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None
    finally:
        # Empty where a checkpoint was refused: keep what is there.
        if is_first and (trainer.state.log_history or not report["trainable"]):
            write_jsonl(output / METRICS, _metrics(trainer.state.log_history))
    if is_first:
        if trainer.monitor.skipped:
            log.warning("%d steps were skipped because of NaN or infinity", trainer.monitor.skipped)
        with atomic_folder(output / TOKENIZER) as folder:
            chat.tokenizer.save_pretrained(folder)
        files = model.save_weights(output)
        if settings.model.architecture == "qwen2_audio" and settings.model.clamp_q_proj_input and files:
            log.warning(
                "clamp_q_proj_input is %g, and is no part of %s: other programs that load it, PEFT too, do not clamp, "
                "and may answer otherwise; Earmark does",
                settings.model.clamp_q_proj_input, files[0],
            )  # fmt: skip
        write_json(output / AUDIT, {**report, "checkpoint": checkpoint_size(files, report)})
        if moved := model.projector_movement():
            write_json(output / MOVEMENT, moved)
            log.info("the projector moved by %.3g of its length; cosine to the published one %.6f", *_both(moved))
        # Last: all else is there.
        write_json(output / SETTINGS, {"architecture": settings.model.architecture, **as_dict(settings)})
        if files:
            log.info("%s: trained weights of %d steps", files[0], trainer.state.global_step)
        else:
            log.info("%s: evaluated as it is; nothing was trained", output)


def load(folder: Path) -> tuple[SpeechLanguageModel, ChatLabels, Collator]:
    """A trained model in evaluation mode, on the CPU, with its chat template and what makes its batches.

    ConfigError if a base model cannot be loaded, or the folder's weights do not fit it.
    """
    # Nothing is differentiated, so nothing must be computed twice.
    settings = ModelSettings(**{**read_json(folder / SETTINGS)["model"], "gradient_checkpointing": False})
    chat = load_chat(settings, folder / TOKENIZER)
    model = build_model(settings, chat.audio_id, seed=0)
    model.load_weights(folder)
    return model.eval(), chat, _collator(model, chat)


def _read(
    settings: Settings, output: Path, chat: ChatLabels, model: SpeechLanguageModel
) -> tuple[Samples, Samples | None]:
    data = settings.data
    if settings.model.architecture == "qwen2_audio" and settings.model.method == "none":
        train = Samples([])
    else:
        train = read_samples(Path(data.train_json), output / "train_data.json", chat, data, model.clips)
    if data.valid_json is None:
        return train, None
    return train, read_samples(Path(data.valid_json), output / "valid_data.json", chat, data, model.clips)


def _trains_published_projector(settings: ModelSettings) -> bool:
    return settings.architecture == "qwen2_audio" and settings.method == "projector"


def _check_enough(train: Samples, source: Path) -> None:
    """InputError if there is too little to train a published projector on, or no speech."""
    if len(train) < _ENOUGH_FOR_PROJECTOR:
        raise InputError(
            f"{source}: {len(train)} conversations; method projector overwrites what was learned from millions of "
            f"clips, and wants at least {_ENOUGH_FOR_PROJECTOR}. Give it more, or take method lora"
        )
    check_speech([sample.audio for sample in train.samples], source)


def _both(moved: dict[str, Any]) -> tuple[float, float]:
    return moved["relative_change"], moved["cosine"]


def _collator(model: SpeechLanguageModel, chat: ChatLabels) -> Collator:
    return Collator(model.clips, audio_id=chat.audio_id, pad_id=chat.end_id)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's


def _check_devices(settings: ModelSettings) -> None:
    processes = _processes()
    if settings.device_map and processes > 1:
        raise ConfigError("device_map spreads one process over GPUs; leave it out under torchrun, or torchrun out")
    if processes == 1 and torch.cuda.device_count() > 1 and not settings.device_map:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; start torchrun --nproc_per_node "
            f"{torch.cuda.device_count()} -m earmark.speech_llm, set device_map, or CUDA_VISIBLE_DEVICES to one"
        )

    if settings.whisper_cpu and processes > 1 and torch.cuda.is_available():
        raise ConfigError(
            "whisper_cpu puts parameters on two kinds of devices, which several processes cannot share a model over; "
            "leave it out, or train in one process"
        )


def _check_type(settings: ModelSettings) -> None:
    flag = "qwen3_dtype" if settings.architecture == "whisper_qwen3" else "qwen2_audio_dtype"
    evaluated_only = settings.architecture == "qwen2_audio" and settings.method == "none"
    if getattr(settings, flag) == "float16" and not evaluated_only:
        raise ConfigError(
            f"{flag} is float16: gradients of a batch with many labels are below its smallest number and become "
            "zero, as there is no loss scaling; take bfloat16, which has float32's range, or float32"
        )


def _remove_earlier(output: Path, checkpoints: Path, processes: int, *, resume: bool) -> None:
    """Remove checkpoints of other trainings, and of this one unless it shall go on; and if it does not, results."""
    for folder in checkpoints.parent.glob("*"):
        if folder.is_dir() and not (resume and folder == checkpoints):
            shutil.rmtree(folder)
    if last_checkpoint(checkpoints, processes) is None:
        snapshots = (f"{SNAPSHOT}.*", f"process_*/{SNAPSHOT}.*")
        for pattern in (*_RESULTS, *snapshots):  # settings first: without them it is no model
            for path in output.glob(pattern):
                path.unlink()


def _training_arguments(settings: Settings, checkpoints: Path) -> TrainingArguments:
    train, on_gpu = settings.train, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.num_train_epochs,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=0.0,  # ClipGradients does it
        eval_strategy="epoch" if settings.data.valid_json else "no",
        prediction_loss_only=True,
        label_names=["labels"],
        save_strategy="steps" if train.save_steps else "epoch",
        save_steps=train.save_steps or 500,
        save_total_limit=train.save_total_limit,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=train.dataloader_num_workers,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if _processes() > 1 and not on_gpu else None,
        use_cpu=not on_gpu,
        seed=train.seed,
        data_seed=train.seed,
    )


def _shares(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {part['trainable']} of {part['parameters']}" for name, part in report["parts"].items())


def _metrics(history: list[dict[str, float]]) -> Iterator[dict[str, float | None]]:
    """The lines of train_metrics.jsonl, without how long things took and the closing summary of this process alone.

    What is not finite is null.
    """
    for entry in history:
        if "train_runtime" not in entry:
            figures = {name: value for name, value in sorted(entry.items()) if not name.endswith(_TIMINGS)}
            places = {"step": figures.pop("step"), "epoch": round(figures.pop("epoch"), 4)}
            yield {**places, **{name: finite_or_none(value) for name, value in figures.items()}}
