import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from earmark.chunks.mentions import MentionFinder
from earmark.chunks.plan import no_term_chunk, segment_random, spoken_terms, term_chunk

SURFACES = {"big apple": "new york", "new york": "new york", "ohm": "ohm", "volt": "volt"}
FINDER = MentionFinder(SURFACES)


def spoken(text, seconds=0.5, start_s=0.0):
    """Words of `seconds` each, one straight after the other."""
    return [
        {"word": word, "start_s": start_s + number * seconds, "end_s": start_s + (number + 1) * seconds}
        for number, word in enumerate(text.split())
    ]


@st.composite
def segments(draw):
    """Aligned words with gaps between them, and the segment's duration."""
    clock, words = 0.0, []
    for word in draw(st.lists(st.sampled_from(["big", "apple", "new", "york", "ohm", "volt", "x", "y"]), max_size=12)):
        clock += draw(st.sampled_from([0.0, 0.01, 0.3]))
        end = clock + draw(st.sampled_from([0.03, 0.2, 0.71]))
        words.append({"word": word, "start_s": clock, "end_s": end})
        clock = end
    return words, clock + draw(st.sampled_from([0.0, 0.01, 1.0])) + (0.0 if words else 0.5)


def test_a_mentions_times_span_its_words():
    [first, second] = spoken_terms(spoken("the big apple ohm"), FINDER)
    assert (first.term, first.main_term, first.start_s, first.end_s) == ("big apple", "new york", 0.5, 1.5)
    assert (second.term, second.start_s, second.end_s) == ("ohm", 1.5, 2.0)


def test_a_chunk_has_its_context_on_both_sides_and_the_words_inside():
    words = spoken("a b c ohm d e f")
    chunk = term_chunk(spoken_terms(words, FINDER)[0], spoken_terms(words, FINDER), words, 3.5, 0.8)
    assert (chunk.start_s, chunk.end_s, chunk.text) == (0.7, 2.8, "b c ohm d e")  # b and e: more than half inside


def test_a_chunk_stops_at_the_segments_borders():
    words = spoken("ohm")
    chunk = term_chunk(spoken_terms(words, FINDER)[0], spoken_terms(words, FINDER), words, 0.6, 1.0)
    assert (chunk.start_s, chunk.end_s) == (0.0, 0.6)


def test_other_terms_are_further_main_terms_once_each():
    words = spoken("big apple ohm new york volt x x x x volt")
    terms = spoken_terms(words, FINDER)
    chunk = term_chunk(terms[1], terms, words, 5.5, 1.5)
    assert chunk.other_terms == ("new york", "volt")


def test_a_term_cut_in_half_counts_where_the_text_holds_it_and_only_there():
    words = spoken("ohm x volt")
    terms = spoken_terms(words, FINDER)
    more_than_half = term_chunk(terms[0], terms, words, 1.5, 0.8)
    less_than_half = term_chunk(terms[0], terms, words, 1.5, 0.7)
    assert (more_than_half.text, more_than_half.other_terms) == ("ohm x volt", ("volt",))
    assert (less_than_half.text, less_than_half.other_terms) == ("ohm x", ())


@given(segment=segments(), context_s=st.sampled_from([0.0, 0.1, 0.4, 1.0]))
def test_term_chunks_stay_inside_hold_their_term_and_name_every_term_of_their_text(segment, context_s):
    words, duration_s = segment
    terms = spoken_terms(words, FINDER)
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


@given(segment=segments(), length_s=st.sampled_from([0.01, 0.3, 0.5, 2.0]), seed=st.integers(0, 5))
def test_no_term_chunks_touch_no_term_and_have_the_length_asked_for(segment, length_s, seed):
    words, duration_s = segment
    terms = spoken_terms(words, FINDER)
    chunk = no_term_chunk(length_s, terms, words, duration_s, np.random.default_rng(seed))
    clock, longest_gap = 0.0, 0.0
    for term in terms:
        longest_gap, clock = max(longest_gap, term.start_s - clock), term.end_s
    longest_gap = max(longest_gap, duration_s - clock)
    if chunk is None:
        assert longest_gap < length_s
        return
    assert longest_gap >= length_s
    assert 0 <= chunk.start_s < chunk.end_s <= duration_s
    assert abs(chunk.duration_s - length_s) < 1e-9
    assert all(chunk.end_s <= term.start_s or term.end_s <= chunk.start_s for term in terms)
    assert (chunk.term, chunk.other_terms) == (None, ())
    assert FINDER.find(chunk.text.split()) == []


def test_no_term_chunks_are_drawn_from_all_places_they_fit():
    words = [{"word": "ohm", "start_s": 4.0, "end_s": 5.0}]
    terms = spoken_terms(words, FINDER)
    starts = [no_term_chunk(1.0, terms, words, 10.0, np.random.default_rng(seed)).start_s for seed in range(300)]
    before = [start for start in starts if start <= 3.0]
    assert 0.30 < len(before) / len(starts) < 0.45  # 3 s of room before the term, 4 s after it
    assert min(starts) < 0.2 and max(starts) > 8.8


def test_a_segments_random_numbers_depend_on_seed_and_id_alone():
    assert segment_random(1, "a").random() == segment_random(1, "a").random()
    assert len({segment_random(seed, name).random() for seed in (1, 2) for name in ("a", "b")}) == 4
