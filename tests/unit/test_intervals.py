import pytest

from earmark import text
from earmark.alignment.intervals import (
    UNKNOWN,
    WordInterval,
    clip_intervals,
    compare_words,
    intervals_problem,
    normalised,
    without_rounding,
)


def said(*spellings):
    """Words of half a second each."""
    return [WordInterval(word, place / 2, (place + 1) / 2) for place, word in enumerate(spellings)]


def times(words):
    return [(word.word, word.start_s, word.end_s) for word in words]


@pytest.mark.parametrize(
    ("found", "expected", "differing", "says"),
    [
        (["a", "b"], ["a", "b"], 0, None),
        (["a", "x"], ["a", "b"], 1, "word 2 of 2 is 'b', the aligner returned 'x'"),
        (["a"], ["a", "b"], 1, "word 2 of 2 is 'b', the aligner returned 'nothing'"),
        (["a", "b", "c"], ["a", "b"], 1, "word 3 of 2 is 'nothing', the aligner returned 'c'"),
        ([], ["a", "b"], 2, "word 1 of 2 is 'a', the aligner returned 'nothing'"),
        (["x", "a", "y", "b"], ["a", "b"], 2, "word 1 of 2 is 'nothing', the aligner returned 'x'"),
    ],
)
def test_other_words_than_the_transcripts_are_counted_and_the_first_is_told_by_place(found, expected, differing, says):
    compared = compare_words(said(*found), expected, 60.0)
    assert (compared.differing, compared.problem) == (differing, says)
    assert [word.word for word in compared.words if word.word != UNKNOWN] == found


def test_words_that_were_not_aligned_leave_an_unknown_where_they_must_be():
    gap = [WordInterval("a", 0.5, 1.0), WordInterval("d", 3.0, 3.5)]
    compared = compare_words(gap, ["z", "a", "b", "c", "d", "e"], 4.0)
    assert times(compared.words) == [
        (UNKNOWN, 0.0, 0.5), ("a", 0.5, 1.0), (UNKNOWN, 1.0, 3.0), ("d", 3.0, 3.5), (UNKNOWN, 3.5, 4.0),
    ]  # fmt: skip
    assert [word.trusted for word in compared.words] == [False, True, False, True, False]
    assert compared.differing == 4


def test_an_unknown_word_takes_the_transcripts_spelling_where_the_neighbours_agree():
    compared = compare_words(said("a", UNKNOWN, "c", UNKNOWN, UNKNOWN), ["a", "b", "c", "d", "e"], 60.0)
    assert [word.word for word in compared.words] == ["a", "b", "c", "d", "e"]
    assert (compared.differing, compared.problem) == (0, None)
    assert times(compared.words)[1] == ("b", 0.5, 1.0)


def test_an_unknown_beside_a_wrong_word_is_spelled_and_only_the_wrong_word_differs():
    compared = compare_words(said("a", UNKNOWN, "x"), ["a", "b", "c"], 60.0)
    assert [word.word for word in compared.words] == ["a", "b", "x"]
    assert (compared.differing, compared.problem) == (1, "word 3 of 3 is 'c', the aligner returned 'x'")


@pytest.mark.parametrize(
    ("found", "expected", "differing"),
    [
        (["a", UNKNOWN, "c"], ["a", "c"], 1),
        (["a", UNKNOWN, "d"], ["a", "b", "c", "d"], 2),
    ],
)
def test_an_unknown_that_stands_for_no_one_word_stays_unknown_and_is_counted(found, expected, differing):
    compared = compare_words(said(*found), expected, 60.0)
    assert [word.word for word in compared.words] == found
    assert compared.differing == differing
    assert UNKNOWN in compared.problem


def test_an_interval_of_several_words_is_divided_by_their_letters():
    words = normalised([WordInterval("Twenty-One,", 1.0, 2.8), WordInterval("...", 2.8, 3.0)])
    assert times(words) == [("twenty", 1.0, pytest.approx(2.2)), ("one", pytest.approx(2.2), 2.8)]
    assert words[0].end_s == words[1].start_s


def test_a_chinese_word_keeps_its_borders_however_text_divides_it():
    words = normalised([WordInterval("\u6c49\u8bed\u8bcd", 0.4, 1.0, score=-1.0, trusted=False)])
    assert [word.word for word in words] == text.words("\u6c49\u8bed\u8bcd")
    assert (words[0].start_s, words[-1].end_s) == (0.4, 1.0)
    assert {(word.score, word.trusted) for word in words} == {(-1.0, False)}


def test_unknown_stays_what_it_is_when_words_are_normalised():
    assert normalised([WordInterval(UNKNOWN, 0.0, 1.0)]) == [WordInterval(UNKNOWN, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([(0.0, 0.5), (0.5, 1.0)], None),
        ([(0.0, 0.5), (0.4, 1.0)], "begins before 0.500 s"),
        ([(0.5, 0.5)], "is empty"),
        ([(0.6, 0.5)], "is empty"),
        ([(-0.1, 0.5)], "begins before 0.000 s"),
        ([(0.5, 1.1)], "ends after the segment's 1.000 s"),
        ([(0.5, float("nan"))], "is empty"),
        ([(float("nan"), 0.5)], "is empty"),
        ([(0.5, float("inf"))], "ends after the segment's 1.000 s"),
    ],
)
def test_impossible_times_are_told(spans, says):
    problem = intervals_problem([WordInterval("w", *span) for span in spans], duration_s=1.0)
    assert problem is None if says is None else says in problem


def test_words_that_run_into_the_padding_end_at_the_segments_border():
    clipped = clip_intervals([WordInterval("a", -0.05, 0.5), WordInterval("b", 0.5, 1.25)], 1.0)
    assert times(clipped) == [("a", 0.0, 0.5), ("b", 0.5, 1.0)]


@pytest.mark.parametrize("span", [(-0.2, -0.1), (1.1, 1.2)])
def test_a_word_in_the_padding_alone_is_a_problem(span):
    assert "is empty" in intervals_problem(clip_intervals([WordInterval("a", *span)], 1.0), 1.0)


def test_overlaps_and_overhangs_of_rounding_are_mended_and_larger_ones_are_not():
    mended = without_rounding([WordInterval("a", 0.0, 0.501), WordInterval("b", 0.5, 1.0015)], 1.0)
    assert times(mended) == [("a", 0.0, 0.501), ("b", 0.501, 1.0)]
    assert intervals_problem(mended, 1.0) is None
    larger = [WordInterval("a", 0.0, 0.51), WordInterval("b", 0.5, 1.01)]
    assert without_rounding(larger, 1.0) == larger


def test_a_start_just_before_the_segment_is_rounding_too():
    assert times(without_rounding([WordInterval("a", -0.001, 0.5)], 1.0)) == [("a", 0.0, 0.5)]
