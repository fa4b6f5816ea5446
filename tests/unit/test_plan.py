import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from earmark.chunks import plan
from earmark.chunks.plan import free_gaps, no_term_chunk, no_term_lengths, random_of, timed
from earmark.mentions import MentionFinder

SURFACES = {"big apple": "new york", "new york": "new york", "ohm": "ohm", "volt": "volt"}
FINDER = MentionFinder(SURFACES)


def spoken(text, seconds=0.5, start_s=0.0):
    """Words of `seconds` each, one straight after the other."""
    return [
        {
            "word": word,
            "start_s": start_s + number * seconds,
            "end_s": start_s + (number + 1) * seconds,
            "trusted": True,
        }
        for number, word in enumerate(text.split())
    ]


def spoken_terms(words):
    return timed(FINDER.find([word["word"] for word in words]), words)


def occurrences(words):
    return timed(FINDER.find_all([word["word"] for word in words]), words)


def term_chunk(term, terms, words, duration_s, context_s):
    return plan.term_chunk(term, terms, words, duration_s, (context_s, context_s))


@st.composite
def segments(draw):
    """Aligned words with gaps between them, and the segment's duration."""
    clock, words = 0.0, []
    for word in draw(st.lists(st.sampled_from(["big", "apple", "new", "york", "ohm", "volt", "x", "y"]), max_size=12)):
        clock += draw(st.sampled_from([0.0, 0.01, 0.3]))
        end = clock + draw(st.sampled_from([0.03, 0.2, 0.71]))
        words.append({"word": word, "start_s": clock, "end_s": end, "trusted": True})
        clock = end
    return words, clock + draw(st.sampled_from([0.0, 0.01, 1.0])) + (0.0 if words else 0.5)


def test_a_mentions_times_span_its_words():
    [first, second] = spoken_terms(spoken("the big apple ohm"))
    assert (first.term, first.main_term, first.start_s, first.end_s) == ("big apple", "new york", 0.5, 1.5)
    assert (second.term, second.start_s, second.end_s) == ("ohm", 1.5, 2.0)


def test_a_chunk_has_its_context_on_both_sides_and_the_words_inside():
    words = spoken("a b c ohm d e f")
    chunk = term_chunk(spoken_terms(words)[0], spoken_terms(words), words, 3.5, 0.8)
    assert (chunk.start_s, chunk.end_s, chunk.text) == (0.7, 2.8, "b c ohm d e")  # b and e: more than half inside


def test_a_chunk_stops_at_the_segments_borders():
    words = spoken("ohm")
    chunk = term_chunk(spoken_terms(words)[0], spoken_terms(words), words, 0.6, 1.0)
    assert (chunk.start_s, chunk.end_s) == (0.0, 0.6)


def test_other_terms_are_further_main_terms_once_each():
    words = spoken("big apple ohm new york volt x x x x volt")
    terms = spoken_terms(words)
    chunk = term_chunk(terms[1], terms, words, 5.5, 1.5)
    assert chunk.other_terms == ("new york", "volt")


def test_a_term_cut_in_half_counts_where_the_text_holds_it_and_only_there():
    words = spoken("ohm x volt")
    terms = spoken_terms(words)
    more_than_half = term_chunk(terms[0], terms, words, 1.5, 0.8)
    less_than_half = term_chunk(terms[0], terms, words, 1.5, 0.7)
    assert (more_than_half.text, more_than_half.other_terms) == ("ohm x volt", ("volt",))
    assert (less_than_half.text, less_than_half.other_terms) == ("ohm x", ())


@given(segment=segments(), context_s=st.sampled_from([0.0, 0.1, 0.4, 1.0]))
def test_term_chunks_stay_inside_hold_their_term_and_name_every_term_of_their_text(segment, context_s):
    words, duration_s = segment
    terms = spoken_terms(words)
    for term in terms:
        chunk = term_chunk(term, terms, words, duration_s, context_s)
        assert 0 <= chunk.start_s <= term.start_s < term.end_s <= chunk.end_s <= duration_s
        assert chunk.duration_s <= term.end_s - term.start_s + 2 * context_s + 1e-9
        assert term.term in chunk.text
        heard = {mention.main_term for mention in FINDER.find(chunk.text.split())}
        # Two halves of different mentions may stand side by side in the text; none may be missing from the list.
        assert set(chunk.other_terms) <= heard
        whole = {t.main_term for t in terms if chunk.start_s <= t.start_s and t.end_s <= chunk.end_s}
        assert whole <= {term.main_term, *chunk.other_terms}


def test_a_chunk_names_the_terms_it_touches_whole_or_in_part_nested_ones_too():
    finder = MentionFinder({"new york": "new york", "new york times": "new york times", "ohm": "ohm"})
    words = spoken("new york times x ohm")
    mentions = timed(finder.find([word["word"] for word in words]), words)
    every = timed(finder.find_all([word["word"] for word in words]), words)
    chunk = plan.term_chunk(mentions[0], mentions, words, 2.5, (0.6, 0.6))  # ends 0.1 s inside "ohm"
    assert chunk.other_terms == ()
    touching = plan.with_touched(chunk, every, {"volt"})
    assert touching.touched_terms == ("new york", "new york times", "ohm", "volt")
    assert plan.with_touched(no_term_chunk(0.5, [(1.5, 2.0)], np.random.default_rng(0)), every, ()).touched_terms == ()


@given(segment=segments(), length_s=st.sampled_from([0.01, 0.3, 0.5, 2.0]), seed=st.integers(0, 5))
def test_no_term_chunks_touch_no_term_and_have_the_length_asked_for(segment, length_s, seed):
    words, duration_s = segment
    terms = occurrences(words)
    gaps = free_gaps(terms, [], duration_s)
    if not any(end - start >= length_s for start, end in gaps):
        return
    chunk = no_term_chunk(length_s, gaps, np.random.default_rng(seed))
    assert 0 <= chunk.start_s < chunk.end_s <= duration_s
    assert abs(chunk.duration_s - length_s) < 1e-9
    assert all(chunk.end_s <= term.start_s or term.end_s <= chunk.start_s for term in terms)
    assert (chunk.term, chunk.other_terms, chunk.touched_terms) == (None, (), ())


@given(segment=segments())
def test_free_gaps_and_terms_cover_the_segment_without_overlap(segment):
    words, duration_s = segment
    terms = occurrences(words)
    for start_s, end_s in free_gaps(terms, [], duration_s):
        assert 0 <= start_s < end_s <= duration_s
        assert all(end_s <= term.start_s or term.end_s <= start_s for term in terms)
    ticks = np.arange(0.005, duration_s, 0.01)
    in_gap = [any(start <= t < end for start, end in free_gaps(terms, [], duration_s)) for t in ticks]
    in_term = [any(term.start_s <= t < term.end_s for term in terms) for t in ticks]
    assert all(gap != term for gap, term in zip(in_gap, in_term, strict=True))


def test_no_term_chunks_are_drawn_from_all_places_they_fit():
    words = [{"word": "ohm", "start_s": 4.0, "end_s": 5.0, "trusted": True}]
    gaps = free_gaps(occurrences(words), words, 10.0)
    starts = [no_term_chunk(1.0, gaps, np.random.default_rng(seed)).start_s for seed in range(300)]
    before = [start for start in starts if start <= 3.0]
    assert 0.30 < len(before) / len(starts) < 0.45  # 3 s of room before the term, 4 s after it
    assert min(starts) < 0.2 and max(starts) > 8.8


@given(
    lengths=st.lists(st.floats(0.5, 5.0), max_size=30),
    rooms=st.lists(st.floats(0.0, 6.0), max_size=30),
    ratio=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
)
def test_no_term_lengths_are_term_lengths_that_all_fit_and_one_more_would_not(lengths, rooms, ratio):
    chosen = no_term_lengths(lengths, rooms, ratio)
    assert len(chosen) <= round(ratio * len(lengths)) and set(chosen) <= set(lengths)
    assert all(length <= room for length, room in zip(chosen, sorted(rooms, reverse=True), strict=False))
    assert len(chosen) <= len(rooms)


def test_short_room_gives_fewer_no_term_chunks_not_shorter_ones():
    lengths = [1.0, 2.0, 3.0, 4.0]
    chosen = no_term_lengths(lengths, [4.0, 3.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0], 2.0)
    assert len(chosen) < 8
    assert abs(np.mean(chosen) - np.mean(lengths)) < 0.6
    assert no_term_lengths(lengths, [9.0] * 8, 2.0) == [4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]


def test_a_segments_random_numbers_depend_on_seed_and_id_alone():
    assert random_of(1, "a").random() == random_of(1, "a").random()
    assert len({random_of(seed, name).random() for seed in (1, 2) for name in ("a", "b")}) == 4


def test_no_gap_holds_a_word_whose_times_are_not_trusted():
    words = spoken("a b c d")
    words[1]["trusted"] = False
    assert free_gaps([], words, 2.0) == [(0.0, 0.5), (1.0, 2.0)]


def test_a_mention_is_trusted_when_all_its_words_are():
    words = spoken("big apple ohm")
    words[1]["trusted"] = False
    assert [(t.term, t.trusted) for t in occurrences(words)] == [("big apple", False), ("ohm", True)]


def test_jitter_moves_both_sides_on_their_own_within_its_bounds():
    drawn = [plan.jittered(0.5, 0.6, random_of(1, f"chunk{number}")) for number in range(200)]
    assert all(0.0 <= side <= 1.1 for sides in drawn for side in sides)
    assert min(before for before, _ in drawn) == 0.0
    assert max(after for _, after in drawn) > 1.0
    assert len({round(before - after, 6) for before, after in drawn}) > 150
    assert plan.jittered(0.5, 0.0, random_of(1, "chunk")) == (0.5, 0.5)
