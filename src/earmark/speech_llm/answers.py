"""What a fine-tuned speech language model answers about the chunks of a split."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from earmark.artifacts import ANSWERS, StageTable
from earmark.errors import AudioError
from earmark.logs import progress
from earmark.packed_wavs import check_unpacked
from earmark.speech_llm.batches import Collator, Sample, read_clip
from earmark.speech_llm.clip_features import ClipFeatures
from earmark.speech_llm.conversations import UnusableLine, conversation, lines
from earmark.speech_llm.labels import IGNORED, ChatLabels, Tokens
from earmark.speech_llm.model import SpeechLanguageModel
from earmark.speech_llm.train import load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and whether it came to an end by itself."""

    text: str
    finished: bool


class Answerer:
    """A trained model that answers, greedily, hearing clips at their true length; on the GPU where there is one."""

    def __init__(self, model: SpeechLanguageModel, chat: ChatLabels, collate: Collator, max_new_tokens: int):
        self.model, self.chat, self.collate, self.max_new_tokens = model.eval(), chat, collate, max_new_tokens
        if torch.cuda.is_available() and not model.is_spread:
            self.model.to("cuda")

    @classmethod
    def load(cls, folder: Path, max_new_tokens: int) -> Answerer:
        """The model that a training wrote to `folder`. ConfigError as of `train.load`."""
        return cls(*load(folder), max_new_tokens)

    def answers(self, samples: Sequence[Sample]) -> list[Answer]:
        """The likeliest answers to samples whose tokens end where the answer begins. AudioError as of Collator."""
        batch = self.collate(list(samples))
        device = self.model.token_table.device
        ids, mask = (_padded_left(batch[name], batch["attention_mask"]) for name in ("input_ids", "attention_mask"))
        said = self.model.generate(
            ids.to(device),
            mask.to(device),
            batch["mel"],
            batch["states"],
            end_id=self.chat.end_id,
            max_new_tokens=self.max_new_tokens,
        )
        return [self._answer(row) for row in said.tolist()]

    def _answer(self, ids: list[int]) -> Answer:
        finished = self.chat.end_id in ids
        ids = ids[: ids.index(self.chat.end_id)] if finished else ids
        return Answer(str(self.chat.tokenizer.decode(ids, skip_special_tokens=True)).strip(), finished)


def _padded_left(rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """rows[B, L], padded on the right, with their padding on the left."""
    longest = rows.shape[1]
    lengths = attention_mask.sum(1).tolist()
    return torch.stack([row.roll(longest - length) for row, length in zip(rows, lengths, strict=True)])


def answer_split(
    model: Path,
    lines_path: Path,
    output: Path,
    *,
    wavs: Sequence[Path],
    max_new_tokens: int,
    batch_size: int,
    threads: int,
    max_rejected_fraction: float,
) -> None:
    """Write what the model in `model` answers to the conversations in `lines_path` (schema ANSWERS).

    What stands in a line after the last question is not shown to it. A chunk's id is the name of its wav. A line that
    is no conversation, or whose audio cannot be heard, is rejected; TooManyRejectedError above `max_rejected_fraction`.
    """
    check_unpacked(wavs, lines_path)
    torch.set_num_threads(threads)
    answerer = Answerer.load(model, max_new_tokens)
    unfinished = 0
    with StageTable(output, ANSWERS, unit="chunks", max_rejected_fraction=max_rejected_fraction) as table:
        samples = _samples(lines_path, answerer.chat, answerer.model.clips, table)
        while batch := list(itertools.islice(samples, batch_size)):
            begun = time.perf_counter()
            answers = answerer.answers(batch)
            share_s = (time.perf_counter() - begun) / len(batch)
            for sample, answer in zip(batch, answers, strict=True):
                table.keep(
                    {
                        "chunk_id": sample.audio.stem,
                        "text": answer.text,
                        "finished": answer.finished,
                        "seconds": share_s,
                    }
                )
                unfinished += not answer.finished
    log.info("%s: %d answers, %d of them cut off at %d tokens", output, table.rejected.kept, unfinished, max_new_tokens)


def _samples(lines_path: Path, chat: ChatLabels, clips: ClipFeatures, table: StageTable) -> Iterator[Sample]:
    """The questions, with audio that can be heard; other lines are rejected."""
    for row_id, row in progress(lines(lines_path), unit="answers"):
        table.rejected.input += 1
        try:
            talk = conversation(row_id, row, "conversation", lines_path.parent)
            ids = chat.prompt_ids(talk.turns[:-1])
            read_clip(talk.audio, clips)
        except UnusableLine as error:
            table.reject(row_id, error.reason, str(error))
        except AudioError as error:
            table.reject(row_id, "bad_audio", str(error))
        else:
            yield Sample(row_id, talk.audio, Tokens(ids, np.full_like(ids, IGNORED)))
