from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.mentions import Mention, MentionFinder


def find(surfaces, text):
    finder = MentionFinder({surface: surface.upper() for surface in surfaces})
    return [(m.surface, m.first, m.last) for m in finder.find(text.split())]


def test_a_mention_knows_its_surface_main_term_and_place():
    finder = MentionFinder({"big apple": "new york"})
    assert finder.find(["the", "big", "apple"]) == [Mention("big apple", "new york", 1, 3)]


def test_of_overlapping_mentions_the_longest_wins():
    assert find(["new york", "york minster choir"], "new york minster choir") == [("york minster choir", 1, 4)]
    assert find(["new york", "new york city"], "in new york city") == [("new york city", 1, 4)]


def test_of_equally_long_overlapping_mentions_the_leftmost_wins():
    assert find(["a b", "b c"], "a b c") == [("a b", 0, 2)]
    assert find(["a a"], "a a a a a") == [("a a", 0, 2), ("a a", 2, 4)]


def test_a_mention_freed_by_a_beaten_one_is_found():
    assert find(["a b", "b c d", "a"], "a b c d") == [("a", 0, 1), ("b c d", 1, 4)]


def test_whole_words_only():
    assert find(["york"], "yorkshire newyork york's york") == [("york", 3, 4)]


def test_nothing_is_found_in_nothing():
    assert find(["a"], "") == []
    assert find([], "a b") == []


def naive(surfaces, words):
    """Paint one mention after the other, longest first, from left to right, over a copy of the words."""
    left = list(words)
    found = []
    for length in range(len(words), 0, -1):
        for first in range(len(words) - length + 1):
            span = left[first : first + length]
            if None not in span and " ".join(span) in surfaces:
                found.append((" ".join(span), first, first + length))
                left[first : first + length] = [None] * length
    return sorted(found, key=lambda mention: mention[1])


_WORD = st.sampled_from(["a", "b", "c", "ab"])


@settings(max_examples=300)
@given(
    surfaces=st.sets(st.lists(_WORD, min_size=1, max_size=4).map(" ".join), max_size=6),
    words=st.lists(_WORD, max_size=12),
)
def test_the_finder_equals_a_naive_one(surfaces, words):
    assert find(surfaces, " ".join(words)) == naive(surfaces, words)
