"""Conversations ready for training: read and checked once, and put into batches with their audio."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from earmark.artifacts import RejectedRows, write_json
from earmark.audio import SAMPLE_RATE, audio_info, read_audio
from earmark.errors import AudioError, InputError
from earmark.speech_llm.clip_features import ClipFeatures
from earmark.speech_llm.conversations import UnusableLine, conversation, lines
from earmark.speech_llm.labels import IGNORED, ChatLabels, Tokens, fit_tokens
from earmark.speech_llm.settings import DataSettings
from earmark.whisper import check_clip, state_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One conversation: where its audio lies, and its tokens, the audio being one of them."""

    id: str
    audio: Path
    tokens: Tokens


class Samples(Dataset[Sample]):
    """The kept lines of a file."""

    def __init__(self, samples: list[Sample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def read_samples(path: Path, output: Path, chat: ChatLabels, settings: DataSettings, clips: ClipFeatures) -> Samples:
    """Read, check and tokenise the conversations of `path`.

    Audio is decoded once, so that none fails later, in the middle of a training; without `check_audio`, its header
    alone is read.

    Beside `output`, which gets the counts of lines and valid labels as JSON, `*.rejected.jsonl` says why lines were
    left out. InputError if none is left or the file cannot be read, TooManyRejectedError beyond
    `max_rejected_fraction`.
    """
    rejected = RejectedRows("conversations", settings.max_rejected_fraction)
    samples: list[Sample] = []
    for row_id, row in lines(path):
        rejected.input += 1
        try:
            samples.append(_sample(row_id, row, path, chat, settings, clips))
            rejected.kept += 1
        except UnusableLine as error:
            rejected.reject(row_id, error.reason, str(error))
        except AudioError as error:
            rejected.reject(row_id, "bad_audio", str(error))
    rejected.close(output)
    valid = np.array([sample.tokens.valid_labels for sample in samples])
    if not samples:
        raise InputError(f"{path}: no conversation to use ({rejected.input} lines); {output.parent} has the reasons")
    labels = {
        "total": int(valid.sum()),
        "fewest": int(valid.min()),
        "median": float(np.median(valid)),
        "most": int(valid.max()),
    }
    write_json(output, {**rejected.counts(), "valid_labels": labels})
    log.info(
        "%s: %d of %d conversations kept; tokens that count: %d in all, %d to %d each, median %g",
        path, rejected.kept, rejected.input, labels["total"], labels["fewest"], labels["most"], labels["median"],
    )  # fmt: skip
    return Samples(samples)


def _sample(row_id: str, row: Any, path: Path, chat: ChatLabels, settings: DataSettings, clips: ClipFeatures) -> Sample:
    talk = conversation(row_id, row, settings.data_mode, path.parent)
    if settings.check_audio:
        states = state_count(read_clip(talk.audio, clips).size)
    else:
        states = state_count(round(audio_info(talk.audio).duration_s * SAMPLE_RATE))
    if not clips.audio_tokens(states) or states > clips.max_states:
        raise AudioError(
            f"{talk.audio}: {states * 0.02:.2f} s of audio; the encoder takes {clips.max_states * 0.02:g} s, and needs "
            "enough for one token"
        )
    tokens = fit_tokens(
        chat(talk.turns),
        audio_id=chat.audio_id,
        audio_tokens=clips.audio_tokens(states),
        max_length=settings.max_length,
        all_masked=settings.all_masked,
    )
    if tokens.valid_labels < settings.min_valid_labels:
        raise UnusableLine(
            "too_few_labels", f"{tokens.valid_labels} tokens count; min_valid_labels is {settings.min_valid_labels}"
        )
    return Sample(row_id, talk.audio, tokens)


def read_clip(path: Path, clips: ClipFeatures) -> np.ndarray:
    """samples[n] at 16 kHz.

    AudioError if they cannot be read, are none, not finite, too long for the encoder or too short for a token.
    """
    clip = read_audio(path)
    try:
        check_clip(clip, clips.max_states)
        if not clips.audio_tokens(state_count(clip.size)):
            raise AudioError(f"a clip of {clip.size / SAMPLE_RATE:.3f} s is too short for one audio token")
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from None
    return clip


class Collator:
    """Reads the audio of samples and lays them side by side, padded on the right.

    Gives input_ids, attention_mask and labels, all [B, L], mel[B, bins, M] and states[B]. AudioError names the file
    that cannot be used.
    """

    def __init__(self, clips: ClipFeatures, *, audio_id: int, pad_id: int):
        self.clips, self.audio_id, self.pad_id = clips, audio_id, pad_id

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        mel, states = self.clips.log_mel([read_clip(sample.audio, self.clips) for sample in samples])
        counts = [self.clips.audio_tokens(count) for count in states.tolist()]
        rows = [self._with_audio(sample.tokens, count) for sample, count in zip(samples, counts, strict=True)]
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED)
        for number, (ids, row_labels) in enumerate(rows):
            input_ids[number, : len(ids)] = torch.from_numpy(ids)
            attention_mask[number, : len(ids)] = 1
            labels[number, : len(ids)] = torch.from_numpy(row_labels)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "mel": mel,
            "states": states,
        }

    def _with_audio(self, tokens: Tokens, count: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels with the audio token `count` times."""
        times = np.where(tokens.ids == self.audio_id, count, 1)
        return np.repeat(tokens.ids, times).astype(np.int64), np.repeat(tokens.labels, times).astype(np.int64)
