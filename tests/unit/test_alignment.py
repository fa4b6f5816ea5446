import csv
import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from earmark.alignment.accuracy import boundary_figures, score_alignments
from earmark.alignment.embedded import _aligned, align_shard
from earmark.alignment.intervals import WordInterval, clip_intervals, intervals_problem, words_problem
from earmark.alignment.pocketsphinx_aligner import PocketSphinxAligner
from earmark.artifacts import ALIGNMENTS, CORPUS, iterate_rows, rejected_path, write_table
from earmark.audio import audio_info, read_audio
from earmark.errors import EarmarkError, InputError


def corpus_table(path, rows):
    """`rows`: (segment_id, audio path, offset_s, duration_s, text)."""
    table = [
        {
            "segment_id": segment_id,
            "recording_id": "r",
            "speaker_id": "s",
            "audio_path": str(audio),
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


def align(tmp_path, corpus, threads=1, lexicon=None):
    output = tmp_path / f"alignments{threads}.parquet"
    align_shard(corpus, output, lexicon=lexicon, seed=1, threads=threads, max_rejected_fraction=1.0)
    rejected = [json.loads(line) for line in rejected_path(output).read_text().splitlines()]
    return list(iterate_rows(output)), {row["id"]: row for row in rejected}


@pytest.fixture(scope="module")
def utterances(speech):
    """(segment_id, audio path, offset_s, duration_s, text) of the shorter real recordings."""
    with (speech / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [
            (row["segment_id"], speech / row["audio"], 0.0, audio_info(speech / row["audio"]).duration_s, row["text"])
            for row in csv.DictReader(file, delimiter="\t")
        ]
    return sorted((row for row in rows if row[3] < 8), key=lambda row: row[0])


def test_real_speech_aligns_to_ordered_intervals_of_its_words_and_bad_pairs_are_rejected(tmp_path, utterances):
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(32_000), 16_000)
    _, audio, _, duration_s, text = utterances[0]
    bad = [
        ("unknown", audio, 0.0, duration_s, f"{text} qwzrtxq"),
        ("silent", silence, 0.0, 2.0, text),
        ("too_many_words", audio, 0.0, 0.5, text),
    ]
    corpus = corpus_table(tmp_path / "corpus.parquet", [*utterances, *bad])
    rows, rejected = align(tmp_path, corpus, threads=1)
    assert [row["segment_id"] for row in rows] == [row[0] for row in utterances]
    for row, (_, _, _, length_s, transcript) in zip(rows, utterances, strict=True):
        assert " ".join(word["word"] for word in row["words"]) == transcript
        edges = [edge for word in row["words"] for edge in (word["start_s"], word["end_s"])]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= length_s
        assert all(word["end_s"] > word["start_s"] for word in row["words"])
        assert (row["status"], row["aligner"]) == ("aligned", f"pocketsphinx-{version('pocketsphinx')}")
    assert {key: row["reason"] for key, row in rejected.items()} == {
        "unknown": "unknown_word", "silent": "not_aligned", "too_many_words": "not_aligned",
    }  # fmt: skip
    assert "qwzrtxq" in rejected["unknown"]["detail"]
    assert "align.lexicon" in rejected["unknown"]["detail"]
    assert align(tmp_path, corpus, threads=2) == (rows, rejected)


def test_a_segment_inside_a_recording_aligns_from_its_own_start(tmp_path, utterances):
    _, audio, _, duration_s, text = min(utterances, key=lambda row: row[3])
    samples, rate = soundfile.read(audio)
    longer = tmp_path / "longer.wav"
    soundfile.write(longer, np.concatenate([np.full(rate * 3, 0.0), samples]), rate)
    rows, _ = align(
        tmp_path,
        corpus_table(
            tmp_path / "c.parquet", [("alone", audio, 0.0, duration_s, text), ("inside", longer, 3.0, duration_s, text)]
        ),
    )
    starts = {row["segment_id"]: [word["start_s"] for word in row["words"]] for row in rows}
    assert starts["inside"] == pytest.approx(starts["alone"], abs=0.03)


def test_every_utterance_aligns_alike_whatever_came_before(utterances):
    aligner = PocketSphinxAligner(None, seed=1)
    spoken = [(read_audio(audio), text.split()) for _, audio, _, _, text in utterances]
    forwards = [aligner.align(*utterance) for utterance in spoken]
    aligner.align(np.zeros(16_000, dtype=np.float32), ["hello"])
    assert [aligner.align(*utterance) for utterance in spoken[::-1]] == forwards[::-1]


def test_an_empty_shard_aligns_to_an_empty_table(tmp_path):
    assert align(tmp_path, corpus_table(tmp_path / "c.parquet", [])) == ([], {})


def test_audio_that_vanished_after_the_corpus_stage_is_named(tmp_path):
    corpus = corpus_table(tmp_path / "c.parquet", [("s", tmp_path / "gone.wav", 0.0, 1.0, "hello")])
    with pytest.raises(InputError, match=r"gone\.wav: there is no such file"):
        align(tmp_path, corpus)
    assert not (tmp_path / "alignments1.parquet").exists()


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_job_instead_of_hanging_it(monkeypatch):
    monkeypatch.setattr("earmark.alignment.embedded._align", _die)
    with ProcessPoolExecutor(1) as pool, pytest.raises(EarmarkError, match="killed, most likely for memory"):
        list(_aligned(pool, iter([("s", None, 1.0, [])] * 5), ahead=2))


def test_no_more_tasks_are_under_way_than_allowed():
    read = []

    def tasks():
        for number in range(10):
            read.append(number)
            yield number

    class Pool:
        def submit(self, _, task):
            class Done:
                def result(self):
                    return task

            return Done()

    results = _aligned(Pool(), tasks(), ahead=3)
    assert next(results) == 0
    assert read == [0, 1, 2]
    assert list(results) == list(range(1, 10))


def test_a_lexicon_adds_words_however_they_are_spelled(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text(
        "\ufeff# comment\n\nQwzrtx  K W ER T\nqwzrtx(2)\tK W ER T S\nblorf B L AO R F\n", encoding="utf-8"
    )
    aligner = PocketSphinxAligner(lexicon, seed=1)
    assert aligner.unknown_words(["qwzrtx", "blorf", "hello", "zzyqt", "zzyqt"]) == ["zzyqt"]
    assert PocketSphinxAligner(None, seed=1).unknown_words(["qwzrtx"]) == ["qwzrtx"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("qwzrtx", "has no phonemes"),
        ("qwzrtx K W ER1 T", "use the CMU phonemes without stress"),
        ("qwzrtx K XX T", "use the CMU phonemes without stress"),
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
    with pytest.raises(InputError, match=r"cannot be read .* set align\.lexicon"):
        PocketSphinxAligner(lexicon, seed=1)


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        (["a", "b"], ["a", "b"], None),
        (["a", "x"], ["a", "b"], "word 2 of 2 is 'b', the aligner returned 'x'"),
        (["a"], ["a", "b"], "word 2 of 2 is 'b', the aligner returned 'nothing'"),
        (["a", "b", "c"], ["a", "b"], "word 3 of 2 is 'nothing', the aligner returned 'c'"),
    ],
)
def test_other_words_than_the_transcripts_are_told_by_place(found, expected, says):
    assert words_problem(found, expected) == says


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([(0.0, 0.5), (0.5, 1.0)], None),
        ([(0.0, 0.5), (0.4, 1.0)], "begins before 0.500 s"),
        ([(0.5, 0.5)], "is empty"),
        ([(0.6, 0.5)], "is empty"),
        ([(-0.1, 0.5)], "begins before 0.000 s"),
        ([(0.5, 1.1)], "ends after the segment's 1.000 s"),
    ],
)
def test_impossible_times_are_told(times, says):
    problem = intervals_problem([WordInterval("w", *pair) for pair in times], duration_s=1.0)
    assert problem is None if says is None else says in problem


def test_words_that_run_into_the_padding_end_at_the_segments_border():
    clipped = clip_intervals([WordInterval("a", -0.05, 0.5), WordInterval("b", 0.5, 1.25)], 1.0)
    assert [(word.start_s, word.end_s) for word in clipped] == [(0.0, 0.5), (0.5, 1.0)]


@pytest.mark.parametrize("times", [(-0.2, -0.1), (1.1, 1.2)])
def test_a_word_in_the_padding_alone_is_a_problem(times):
    assert "is empty" in intervals_problem(clip_intervals([WordInterval("a", *times)], 1.0), 1.0)


def test_real_speech_cut_tightly_at_word_borders_still_aligns(tmp_path, utterances):
    audio = utterances[0][1]
    [whole], _ = align(tmp_path, corpus_table(tmp_path / "whole.parquet", [utterances[0]]))
    spans = [whole["words"][first : first + 4] for first in range(0, len(whole["words"]) - 3, 4)]
    rows, rejected = align(
        tmp_path,
        corpus_table(
            tmp_path / "spans.parquet",
            [
                (f"span{number}", audio, span[0]["start_s"], span[-1]["end_s"] - span[0]["start_s"],
                 " ".join(word["word"] for word in span))
                for number, span in enumerate(spans)
            ],
        ),
    )  # fmt: skip
    assert rejected == {}
    found = [row["words"][1]["start_s"] for row in rows]
    assert found == pytest.approx([span[1]["start_s"] - span[0]["start_s"] for span in spans], abs=0.05)


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
    score_alignments([tmp_path / "a.parquet"], [corpus], tmp_path / "reference.parquet", tmp_path / "out.json")
    return json.loads((tmp_path / "out.json").read_text())


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
        score_alignments([], [], tmp_path / "odd.parquet", tmp_path / "out.json")
