import json

import pyarrow as pa
import pytest

from earmark import text
from earmark.alignment.aligner import Alignment, Failure
from earmark.alignment.intervals import UNKNOWN, WordInterval
from earmark.alignment.shard import align_shard
from earmark.artifacts import CORPUS, iterate_rows, rejected_path, table_counts, write_table
from earmark.errors import TooManyRejectedError


class Scripted:
    """An aligner that answers as it is told: segment_id -> spoken words of half a second, or (reason, detail)."""

    name = "scripted-1"

    def __init__(self, answers):
        self.answers = answers

    def align(self, utterances):
        for utterance in utterances:
            answer = self.answers[utterance.segment_id]
            if isinstance(answer, tuple):
                yield Failure(utterance.segment_id, *answer)
            else:
                words = [w if isinstance(w, WordInterval) else word(w, place) for place, w in enumerate(answer)]
                yield Alignment(utterance.segment_id, words, quality=-1.5)


def word(spelling, place):
    return WordInterval(spelling, place / 2, (place + 1) / 2)


def aligned(tmp_path, texts, answers, *, max_differing_words=0.0, max_rejected_fraction=1.0):
    """`texts`: segment_id -> transcript; every segment is 3 s long. Returns rows and rejected rows by segment."""
    rows = [
        {"segment_id": key, "recording_id": "r", "speaker_id": "s", "audio_path": "/r.wav", "offset_s": 3.0 * place,
         "duration_s": 3.0, "text": text, "language": "en"}
        for place, (key, text) in enumerate(texts.items())
    ]  # fmt: skip
    corpus, output = tmp_path / "corpus.parquet", tmp_path / "alignments.parquet"
    counts = {b"earmark_counts": json.dumps({"kept": len(rows)}).encode()}
    write_table(corpus, pa.Table.from_pylist(rows, schema=CORPUS.with_metadata(counts)))
    align_shard(
        corpus, output, Scripted(answers),
        max_differing_words=max_differing_words, max_rejected_fraction=max_rejected_fraction,
    )  # fmt: skip
    rejected = [json.loads(line) for line in rejected_path(output).read_text().splitlines()]
    return {row["segment_id"]: row for row in iterate_rows(output)}, {row["id"]: row for row in rejected}


def spoken(row):
    return [entry["word"] for entry in row["words"]]


def test_words_as_in_the_transcript_are_aligned_whatever_their_case_and_marks(tmp_path):
    rows, rejected = aligned(tmp_path, {"a": "well known don't"}, {"a": ["Well-known,", "Don\u2019t"]})
    assert rejected == {}
    assert (rows["a"]["status"], rows["a"]["aligner"], rows["a"]["quality"]) == ("aligned", "scripted-1", -1.5)
    assert spoken(rows["a"]) == ["well", "known", "don't"]
    assert [entry["start_s"] for entry in rows["a"]["words"]] == pytest.approx([0.0, 0.5 * 4 / 9, 0.5])


def test_an_unknown_word_is_spelled_by_the_transcript_and_stays_untrusted(tmp_path):
    unknown = WordInterval(UNKNOWN, 0.5, 1.0, trusted=False)
    rows, rejected = aligned(tmp_path, {"a": "one zyzzyva three"}, {"a": ["one", unknown, word("three", 2)]})
    assert rejected == {}
    assert rows["a"]["status"] == "aligned"
    assert [(entry["word"], entry["trusted"]) for entry in rows["a"]["words"]] == [
        ("one", True), ("zyzzyva", False), ("three", True),
    ]  # fmt: skip


@pytest.mark.parametrize(("allowed", "kept"), [(0.0, False), (0.1, False), (0.2, True)])
def test_one_word_of_five_off_is_kept_only_where_a_fifth_may_differ(tmp_path, allowed, kept):
    rows, rejected = aligned(
        tmp_path, {"a": "one two three four five"}, {"a": ["one", "two", "tree", "four", "five"]},
        max_differing_words=allowed,
    )  # fmt: skip
    if kept:
        assert rejected == {}
        assert rows["a"]["status"] == "words_differ"
        assert spoken(rows["a"]) == ["one", "two", "tree", "four", "five"]
    else:
        assert rows == {}
        assert rejected["a"]["reason"] == "words_differ"
        assert rejected["a"]["detail"] == (
            "1 of 5 words differ: word 3 of 5 is 'three', the aligner returned 'tree'"
        )  # fmt: skip


def test_chinese_words_of_several_characters_are_divided_as_the_transcript_is(tmp_path):
    transcript = text.normalise("\u4eca\u5929\u5929\u6c14")
    rows, rejected = aligned(tmp_path, {"a": transcript}, {"a": ["\u4eca\u5929\u5929\u6c14"]})
    assert rejected == {}
    assert spoken(rows["a"]) == transcript.split()
    assert (rows["a"]["words"][0]["start_s"], rows["a"]["words"][-1]["end_s"]) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("answer", "reason", "says"),
    [
        (("no_textgrid", "there is none"), "no_textgrid", "there is none"),
        ([], "not_aligned", "no word came back for 2 in 3.00 s"),
        ([UNKNOWN], "not_aligned", "no word came back"),
        (["one", WordInterval("two", 0.4, 1.0)], "bad_interval", "begins before 0.500 s"),
        (["one", WordInterval("two", 0.6, 3.5)], "bad_interval", "ends after the segment's 3.000 s"),
    ],
)
def test_what_is_no_alignment_is_rejected_with_its_reason(tmp_path, answer, reason, says):
    rows, rejected = aligned(tmp_path, {"a": "one two", "b": "fine"}, {"a": answer, "b": ["fine"]})
    assert list(rows) == ["b"]
    assert rejected["a"]["reason"] == reason
    assert says in rejected["a"]["detail"]
    counts = table_counts(tmp_path / "alignments.parquet")
    assert (counts["input"], counts["kept"], counts["reasons"]) == (2, 1, {reason: 1})


def test_a_shard_of_mostly_failures_fails(tmp_path):
    answers = {"a": ("no_textgrid", "none"), "b": ["fine"]}
    with pytest.raises(TooManyRejectedError, match="1 of 2 segments were rejected"):
        aligned(tmp_path, {"a": "one", "b": "fine"}, answers, max_rejected_fraction=0.1)


@pytest.mark.parametrize("answers", [["b", "a"], ["a"]])
def test_an_aligner_that_answers_out_of_order_or_not_for_all_is_a_defect(tmp_path, answers):
    class Wrong(Scripted):
        def align(self, utterances):
            list(utterances)
            yield from (Failure(key, "x", "y") for key in answers)

    with pytest.raises(AssertionError, match=r"answered b, not a|did not answer for b"):
        align_shard_with(tmp_path, Wrong({}))


def align_shard_with(tmp_path, aligner):
    rows = [
        {"segment_id": key, "recording_id": "r", "speaker_id": "s", "audio_path": "/r.wav", "offset_s": 0.0,
         "duration_s": 3.0, "text": "x", "language": "en"}
        for key in "ab"
    ]  # fmt: skip
    counts = {b"earmark_counts": json.dumps({"kept": 2}).encode()}
    write_table(tmp_path / "c.parquet", pa.Table.from_pylist(rows, schema=CORPUS.with_metadata(counts)))
    align_shard(
        tmp_path / "c.parquet", tmp_path / "o.parquet", aligner, max_differing_words=0.0, max_rejected_fraction=1.0
    )
