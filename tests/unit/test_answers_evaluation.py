"""What answers in words are worth, against cases worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from speech_llm_bases import make_tokenizer

from earmark.artifacts import ANSWERS, PREDICTIONS, SPLITS, write_json, write_table
from earmark.errors import InputError
from earmark.evaluation.answers import evaluate_answers
from earmark.evaluation.speakers import NO_SEEN_SPEAKER
from earmark.evaluation.term_answers import (
    ListedTerms,
    Outcome,
    SaidTerms,
    TranscribedTerms,
    answer_figures,
    spelled_terms,
    transcript_figures,
)
from earmark.export.splits import export_split
from earmark.export.tokenizer import BUNDLED
from earmark.export.wavs import wav_path
from earmark.speech_llm.batches import read_samples
from earmark.speech_llm.clip_features import WhisperClips
from earmark.speech_llm.labels import IGNORED, ChatLabels
from earmark.speech_llm.settings import DataSettings

DISPLAY = {
    "kilimanjaro": "Mount Kilimanjaro",
    "kidney": "kidney",
    "washington d c": "Washington, D.C.",
    "1000 islands": "1,000 Islands",
}
ALIASES = {"the roof of africa": "kilimanjaro"}
SPELLED = spelled_terms({**{term: term for term in DISPLAY}, **ALIASES}, DISPLAY)


def said(*terms: str, no: tuple[str, ...] = ()) -> SaidTerms:
    return SaidTerms(frozenset(terms), frozenset(no))


REJECTED = SaidTerms(frozenset(), rejected=True)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("Mount Kilimanjaro", said("kilimanjaro")),
        ("KILIMANJARO , the Roof of Africa.", said("kilimanjaro")),
        ("kidney, Washington, D.C., 1,000 Islands", said("kidney", "washington d c", "1000 islands")),
        ("kidneys, kidney", said("kidney", no=("kidneys",))),
        ("mount, kilimanjaro", said("kilimanjaro", no=("mount",))),
        ("none", REJECTED),
        ("None.", REJECTED),
        ("none, kidney", said("kidney", no=("none",))),
        ("", said()),
    ],
)
def test_a_list_is_read_by_exact_spellings_and_the_rest_is_no_term(answer: str, meaning: SaidTerms) -> None:
    assert ListedTerms(SPELLED, DISPLAY)(answer) == meaning


def test_terms_in_a_transcript_are_whole_words_and_none_of_them_rejects() -> None:
    read = TranscribedTerms({**SPELLED, "kidney stone": "stone"})
    assert read("On the roof of Africa, kidneys.") == said("kilimanjaro")
    assert read("a kidney stone") == said("stone")
    assert read("none of it") == REJECTED


def test_a_display_form_stands_for_its_own_term_before_an_alias_of_another() -> None:
    spelled = spelled_terms({"a": "a", "b": "b", "see": "b"}, {"a": "see", "b": "b"})
    assert spelled == {"a": "a", "b": "b", "see": "a"}


def test_recall_precision_and_rejection_are_those_counted_by_hand() -> None:
    kidney, both = frozenset({"kidney"}), frozenset({"kidney", "kilimanjaro"})
    mountain = frozenset({"kilimanjaro"})
    outcomes = [
        Outcome("kidney", kidney, True, said("kidney"), found=True),
        # The other spoken term is right, its own is missed, and a word that is no term is wrong.
        Outcome("kilimanjaro", both, False, said("kidney", no=("kidneys",)), found=False),
        Outcome("kilimanjaro", mountain, False, REJECTED, found=False),
        Outcome(None, frozenset(), None, said("kilimanjaro"), found=False),
        Outcome(None, frozenset(), None, REJECTED, found=False),
    ]
    figures = answer_figures(outcomes, {"kidney"})
    assert figures["recall"] == {
        "all": {"n": 3, "found": 1, "value": 1 / 3},
        "seen": {"n": 1, "found": 1, "value": 1.0},
        "unseen": {"n": 2, "found": 0, "value": 0.0},
    }
    assert figures["precision"] == {
        "all": {"n": 4, "right": 2, "value": 0.5},
        "seen": {"n": 2, "right": 2, "value": 1.0},
        "unseen": {"n": 1, "right": 0, "value": 0.0},
        "no_glossary_term": 1,
    }
    assert (figures["n_term"], figures["n_no_term"]) == (3, 2)
    assert figures["rejected_no_term"] == 1 / 2
    assert figures["false_rejection"] == 1 / 3
    assert figures["exact"] == 2 / 5


def test_shares_of_nothing_are_null() -> None:
    figures = answer_figures([], set())
    assert figures["recall"]["seen"] == {"n": 0, "found": 0, "value": None}
    assert figures["precision"]["all"]["value"] is figures["rejected_no_term"] is figures["exact"] is None
    assert transcript_figures([], [])["wer"] is None


def test_error_rates_count_all_words_together_whatever_their_case_and_marks() -> None:
    # One word of four replaced, one inserted after one: 2 of 5. In characters 1 of 7 replaced, two inserted after 1.
    figures = transcript_figures(["a b c d", "e"], ["A, x c D.", "e f"])
    assert figures == {"n": 2, "words": 5, "wer": 2 / 5, "cer": 3 / 8}
    chinese = transcript_figures(["手 机 号"], ["手机好"])
    assert chinese == {"n": 1, "words": 3, "wer": 1 / 3, "cer": 1 / 3}


def row(chunk_id: str, main_term: str | None, seen: bool | None, text: str, *others: str) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id, "shard": "0000", "segment_id": "s", "recording_id": "r", "speaker_id": "v",
        "term": main_term, "main_term": main_term, "has_term": main_term is not None, "other_terms": list(others),
        "seen_term": seen, "text": text, "duration_s": 1.0,
    }  # fmt: skip


def ranking(chunk_id: str, rank: int | None, **scores: float) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id, "split": "test", "speaker_id": "v", "has_term": rank is not None, "main_term": None,
        "seen_term": None, "rank": rank, "top_terms": list(scores), "top_scores": list(scores.values()),
    }  # fmt: skip


TEST = [
    row("t0", "kidney", True, "a kidney fell"),
    row("t1", "kilimanjaro", False, "kilimanjaro kidney", "kidney"),
    row("t2", "kilimanjaro", False, "kilimanjaro"),
    row("n0", None, None, "nothing here"),
    row("n1", None, None, "no audio"),
]
ANSWERED = {"t0": "kidney", "t1": "kidney", "t2": "the mountain", "n0": "none"}
RANKED = [
    ranking("t0", 1, kidney=3.0, kilimanjaro=1.0),
    ranking("t1", 1, kidney=4.0, kilimanjaro=3.0),  # the other spoken term stands first: found all the same
    ranking("t2", 1, kilimanjaro=2.0, kidney=1.0),  # first, but not above the threshold
    ranking("n0", None, kidney=2.5, kilimanjaro=1.0),
    ranking("n1", None, kidney=0.5, kilimanjaro=0.1),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The artifacts that the evaluation reads."""
    splits = {"train": [{**row("x", "kidney", True, "kidney"), "speaker_id": "u"}], "dev": TEST, "test": TEST}
    for split, rows in splits.items():
        write_table(tmp_path / f"splits/{split}.parquet", pa.Table.from_pylist(rows, schema=SPLITS))
    write_json(tmp_path / "glossary.json", {term: {"term": form, "aliases": []} for term, form in DISPLAY.items()})
    write_json(tmp_path / "alt2main.json", ALIASES)
    write_json(tmp_path / "retriever.json", {"rejection_threshold": 2.0})
    write_table(tmp_path / "retriever.parquet", pa.Table.from_pylist(RANKED, schema=PREDICTIONS))
    return tmp_path


def evaluate(run: Path, answers: dict[str, str], task: str) -> dict[str, Any]:
    given = [
        {"chunk_id": name, "text": text, "finished": name != "t2", "seconds": 0.1} for name, text in answers.items()
    ]
    write_table(run / "answers.parquet", pa.Table.from_pylist(given, schema=ANSWERS))
    evaluate_answers(
        {split: run / "answers.parquet" for split in ("dev", "test")}, run / "splits", run / "glossary.json",
        run / "alt2main.json", run / "retriever.json", run / "retriever.parquet", run / "metrics.json",
        run / "predictions.parquet", task=task,
    )  # fmt: skip
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_answers_and_the_retriever_are_measured_on_the_same_chunks(run: Path) -> None:
    test = evaluate(run, ANSWERED, "spot_terms")["test"]
    assert (test["not_answered"], test["unfinished"]) == (1, 1)
    assert {group: share["value"] for group, share in test["recall"].items()} == {"all": 1 / 3, "seen": 1, "unseen": 0}
    assert test["precision"]["all"] == {"n": 3, "right": 2, "value": 2 / 3}
    assert (test["rejected_no_term"], test["false_rejection"]) == (1.0, 0.0)
    assert "transcript" not in test

    beside = test["retriever"]
    assert beside["recall"]["all"]["found"] == 2
    assert beside["recall"]["unseen"] == {"n": 2, "found": 1, "value": 0.5}
    # It says kidney of t0, t1 and n0, and rejects t2; n1, which nobody answered, is left out.
    assert beside["precision"]["all"] == {"n": 3, "right": 2, "value": 2 / 3}
    assert (beside["n_no_term"], beside["rejected_no_term"]) == (1, 0.0)
    assert beside["false_rejection"] == 1 / 3

    written = pq.read_table(run / "predictions.parquet").to_pylist()
    (missed,) = (line for line in written if line["split"] == "test" and line["chunk_id"] == "t2")
    assert (missed["said_terms"], missed["no_terms"], missed["rejected"]) == ([], ["the mountain"], False)


def test_transcripts_have_error_rates_and_the_terms_that_stand_in_them(run: Path) -> None:
    heard = {"t0": "A kidney fell.", "t1": "Kilimanjaro, kidney", "t2": "killer man jar", "n0": "nothing there"}
    test = evaluate(run, heard, "transcribe")["test"]
    # 3 + 2 + 1 + 2 words; "killer man jar" is one replaced and two inserted, "there" one replaced.
    assert test["transcript"]["words"] == 8
    assert test["transcript"]["wer"] == 4 / 8
    assert test["recall"]["unseen"]["value"] == 0.5
    assert test["precision"]["all"] == {"n": 3, "right": 3, "value": 1.0}
    assert (test["rejected_no_term"], test["false_rejection"]) == (1.0, 1 / 3)


def test_under_the_task_transcribe_transcripts_are_what_is_learned_and_what_is_measured(
    run: Path, tmp_path: Path
) -> None:
    for chunk in TEST:
        wav = wav_path(tmp_path / "wavs", chunk["recording_id"], chunk["chunk_id"])
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, np.full(8_000, 0.1), 16_000)
    lines = tmp_path / "test.jsonl"
    export_split(
        run / "splits/test.parquet", run / "glossary.json", {"0000": tmp_path / "wavs"}, lines, format="conversation",
        task="transcribe", prompt="Transcribe.", tokenizer=BUNDLED, max_rejected_fraction=0.0,
    )  # fmt: skip
    chat = ChatLabels(make_tokenizer(tmp_path / "tokenizer"))
    data = DataSettings(train_json=str(lines), max_rejected_fraction=0.0)
    samples = read_samples(lines, tmp_path / "train_data.json", chat, data, WhisperClips(80, 1500, 5)).samples
    learned = {
        sample.audio.stem: chat.tokenizer.decode(sample.tokens.labels[sample.tokens.labels != IGNORED])
        for sample in samples
    }
    assert learned == {chunk["chunk_id"]: f"{chunk['text']}<|im_end|>" for chunk in TEST}
    said = {name: text.removesuffix("<|im_end|>") for name, text in learned.items()}
    test = evaluate(run, said, "transcribe")["test"]
    assert (test["transcript"]["words"], test["transcript"]["wer"], test["false_rejection"]) == (10, 0.0, 0.0)


def test_chunks_of_speakers_that_training_hears_are_measured_by_themselves(run: Path) -> None:
    heard = [{**chunk, "chunk_id": f"{chunk['chunk_id']}-u", "speaker_id": "u"} for chunk in TEST]
    answers = {**ANSWERED, "t0-u": "none", "t1-u": "kilimanjaro", "n0-u": "kidney"}
    ranked = [*RANKED, *({**line, "chunk_id": f"{line['chunk_id']}-u"} for line in RANKED)]
    alone = {task: evaluate(run, ANSWERED, task)["test"] for task in ("spot_terms", "transcribe")}
    assert alone["spot_terms"]["seen_speakers"] == NO_SEEN_SPEAKER

    write_table(run / "splits/test.parquet", pa.Table.from_pylist([*TEST, *heard], schema=SPLITS))
    write_table(run / "retriever.parquet", pa.Table.from_pylist(ranked, schema=PREDICTIONS))
    for task, before in alone.items():
        test = evaluate(run, answers, task)["test"]
        seen = test.pop("seen_speakers")
        before.pop("seen_speakers")
        assert test == before
        assert (seen["n_term"], seen["n_no_term"], seen["not_answered"]) == (2, 1, 2)
        assert {group: share["value"] for group, share in seen["recall"].items()} == {
            "all": 1 / 2,
            "seen": 0,
            "unseen": 1,
        }
        assert (seen["rejected_no_term"], seen["false_rejection"]) == (0.0, 1 / 2)
        assert seen["retriever"]["recall"]["all"]["found"] == 2
    written = pq.read_table(run / "predictions.parquet").to_pylist()
    assert {line["chunk_id"] for line in written if line["seen_speaker"]} == {"t0-u", "t1-u", "n0-u"}


def test_answers_about_other_chunks_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="holds no answer about a chunk of"):
        evaluate(run, {"elsewhere": "none"}, "spot_terms")
