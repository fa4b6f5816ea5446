import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.alignment.intervals import UNKNOWN
from earmark.alignment.textgrid import IntervalTier, parse_textgrid, word_intervals
from earmark.errors import InputError

WORDS = [(0.0, 0.25, ""), (0.25, 0.5, "she"), (0.5, 1.125, "said"), (1.125, 2.0, "")]
PHONES = [(0.0, 0.25, ""), (0.25, 0.5, "SH"), (0.5, 0.75, "S"), (0.75, 1.125, "D"), (1.125, 2.0, "")]


def quoted(label):
    return '"' + label.replace('"', '""') + '"'


def long_text(tiers, end_s=2.0):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end_s} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f"        name = {quoted(name)} "]
        lines += ["        xmin = 0 ", f"        xmax = {end_s} ", f"        intervals: size = {len(intervals)} "]
        for place, (start, end, label) in enumerate(intervals, start=1):
            lines += [f"        intervals [{place}]:", f"            xmin = {start} ", f"            xmax = {end} "]
            lines += [f"            text = {quoted(label)} "]
    return "\n".join(lines) + "\n"


def short_text(tiers, end_s=2.0):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(end_s), "<exists>", str(len(tiers))]
    for name, intervals in tiers.items():
        lines += ['"IntervalTier"', quoted(name), "0", str(end_s), str(len(intervals))]
        lines += [f"{start}\n{end}\n{quoted(label)}" for start, end, label in intervals]
    return "\n".join(lines) + "\n"


def read(content):
    data = content.encode() if isinstance(content, str) else content
    return {tier.name: tier.intervals for tier in parse_textgrid(data, "a.TextGrid")}


def words_of(tiers, speaker_id=None, **options):
    found = parse_textgrid(short_text(tiers).encode(), "a.TextGrid")
    return [(w.word, w.trusted) for w in word_intervals(found, speaker_id, "a.TextGrid", **options)]


@pytest.mark.parametrize("form", [long_text, short_text])
@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip().encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace("0.25", "2.5e-1").encode(),
        lambda text: text.replace("ooTextFile", "ooTextFile short").encode(),
    ],
)
def test_both_forms_read_alike_in_every_encoding_and_line_end(form, encoded):
    tiers = {"words": [*WORDS[:2], (0.5, 1.125, "s\u00e4gt"), WORDS[3]], "phones": PHONES, "empty": []}
    assert read(encoded(form(tiers))) == tiers


@pytest.mark.parametrize("form", [long_text, short_text])
@pytest.mark.parametrize(
    "label",
    ['say ""', '"', '""', "two\nlines", "! no comment", "0.5", "<exists>", "IntervalTier", '"IntervalTier"', "xmin = 3",
     "TextTier", " ", "e e", "= ="],
)  # fmt: skip
def test_a_label_may_hold_anything(form, label):
    tiers = {"a": [(0.0, 1.0, "x"), (1.0, 1.5, label)], label: [(0.0, 1.0, label), (1.0, 1.5, label)]}
    assert read(form(tiers)) == tiers


def test_only_free_standing_values_count():
    content = """File type = "ooTextFile" ! written by hand, with 3 "words" of comment
    Object class = "TextGrid"
    ! 1 2 3 "four"
    from 0 to 2 tiers? <exists> number_of_tiers1 = 1 [7]: --undefined--
    class "IntervalTier" named "words" from 0 till 2 with 2 intervals
    [1] xmin = 0 x1 = 9x is 1e+00 "one" ! the "first"
    [2] 1 2 "two" """
    assert read(content.replace("9x", "x9")) == {"words": [(0.0, 1.0, "one"), (1.0, 2.0, "two")]}


def test_a_long_file_with_comments_or_exponents_reads_as_without():
    content = long_text({"words": WORDS})
    noted = content.replace("xmax = 0.5 ", "xmax = 5e-1 ! or 0.6 = 0.7 ").replace("xmin = 0.5 ", "xmin = 0.5 ! here")
    assert read(noted) == {"words": WORDS}


def test_a_number_with_an_exponent_without_sign_is_not_misread():
    tiers = {"words": [(0.0, 10.0, "a"), (10.0, 200.0, "b")]}
    assert read(long_text(tiers, 200.0).replace("10.0", "1e1").replace("200.0", "2e2")) == tiers


def test_point_tiers_are_passed_over():
    content = short_text({"words": WORDS, "phones": PHONES})
    points = '"TextTier"\n"IntervalTier"\n0\n2.0\n2\n0.5\n"IntervalTier"\n0.75\n"b"\n'
    with_points = content.replace("<exists>\n2", "<exists>\n3").replace(
        '"IntervalTier"\n"phones"', points + '"IntervalTier"\n"phones"'
    )
    assert read(with_points) == {"words": WORDS, "phones": PHONES}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "breaks off where the file type is due"),
        (b"ooBinaryFile\x08TextGrid\xff\x00", "is a binary TextGrid; save it as text in Praat"),
        (b"ooBinaryFile\x08TextGrid", "is a binary TextGrid; save it as text in Praat"),
        (b'"Praat chronological TextGrid text file"\n0 1', "is a chronological TextGrid"),
        (b'File type = "ooTextFile"\nObject class = "Pitch 1"\n', "holds a Praat object of class 'Pitch 1'"),
        (b'File type = "other"\n', "is no Praat text file"),
        (b"RIFF 1 2 3", "has 1 where the file type is due"),
        (short_text({"w": WORDS}).encode("latin-1").replace(b"said", b"s\xe4gt"), "not utf-8 at byte"),
        (b"\xff\xfe" + short_text({"w": WORDS}).encode("utf-16-le")[:-1], "not utf-16-le at byte"),
        (short_text({"w": WORDS}).replace("<exists>", "<absent>").encode(), "holds no tiers"),
        (short_text({"w": WORDS}).replace("<exists>\n1", "<exists>\nmany").encode(), "the number of tiers is due"),
        (short_text({"w": WORDS}).replace("<exists>\n1", "<exists>\n2").encode(), "where the class of tier 2"),
        (short_text({"w": WORDS}).replace("IntervalTier", "OtherTier").encode(), "is of class 'OtherTier'"),
        (short_text({"w": WORDS}).replace('"w"\n0\n', '"w"\n3\n').encode(), "goes from 3 to 2.0 s"),
        (short_text({"w": WORDS}).replace('"w"\n0\n', '"w"\n-1e999\n').encode(), "goes from -1e999 to 2.0 s"),
    ],
)  # fmt: skip
def test_what_is_no_textgrid_is_refused_and_named(data, says):
    with pytest.raises(InputError) as caught:
        parse_textgrid(data, "a.TextGrid")
    assert str(caught.value).startswith("a.TextGrid: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("form", [long_text, short_text])
@pytest.mark.parametrize(
    ("intervals", "says"),
    [
        ([(0.0, 1.0, "a"), (2.0, 1.5, "b")], "ends at 1.5 s, before it begins at 2.0 s"),
        ([(1.0, 2.0, "a"), (0.0, 1.0, "b")], "not in order of time"),
        ([(0.0, "1e999", "a")], "not finite"),
        ([("-1e999", 1.0, "a")], "not finite"),
        ([(0.0, "1,5", "a")], "something else where a time is due"),
        ([(0.0, "1_x", "a")], "something else where a time is due"),
        ([(0.0, "nan", "a")], "a size is wrong, or the file is not whole"),
    ],
)
def test_impossible_times_are_refused(form, intervals, says):
    with pytest.raises(InputError) as caught:
        read(form({"words": intervals}))
    assert "a.TextGrid: tier 'words'" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("form", [long_text, short_text])
def test_neighbours_may_overlap_by_what_writers_round_to(form):
    tiers = {"words": [(0.0, 0.51, "a"), (0.5, 1.0, "b")]}
    assert read(form(tiers)) == tiers


@pytest.mark.parametrize("form", [long_text, short_text])
def test_a_file_cut_off_anywhere_is_refused(form):
    content = form({"words": WORDS, "phones": PHONES}).rstrip()
    for length in range(len(content)):
        with pytest.raises(InputError, match=r"^a\.TextGrid: "):
            parse_textgrid(content[:length].encode(), "a.TextGrid")


@pytest.mark.parametrize("form", [long_text, short_text])
@pytest.mark.parametrize("size", [0, 3, 5, 10**12, 10**30, "9" * 5000, "-4", "4.0", "1e3"])
@pytest.mark.parametrize("tier", ["words", "phones"])
def test_a_size_that_does_not_add_up_is_refused(form, size, tier):
    content = form({"words": WORDS, "phones": [*PHONES[:3], (0.75, 2.0, "x")]})
    place = content.index(f'"{tier}"')
    place = content.index("4", content.index("2.0", place))
    with pytest.raises(InputError):
        read(content[:place] + str(size) + content[place + 1 :])


@pytest.mark.parametrize(
    "hostile",
    ['"' * 999_999, '"' * 1_000_000, '"" ' * 300_000, "a " * 500_000, "! " * 500_000, "<" * 1_000_000, "-" * 1_000_000,
     '"IntervalTier"' * 70_000, "[" * 1_000_000, " " * 1_000_000 + "x", '"a' * 300_000, "<exists " * 120_000],
    ids=lambda hostile: hostile[:8],
)  # fmt: skip
@pytest.mark.parametrize("where", ["alone", "name", "label", "end"])
def test_a_megabyte_of_anything_is_read_in_one_pass(hostile, where):
    content = long_text({"words": WORDS})
    replaced = {
        "alone": hostile,
        "name": content.replace('"words"', hostile),
        "label": content.replace('"said"', hostile),
        "end": content + hostile,
    }[where]
    try:
        result = read(replaced)
    except InputError:
        return
    assert result == {"words": WORDS} or where in ("name", "label")


@pytest.mark.parametrize(
    "silence",
    ["", " ", "sil", "SIL", "sp", "SP", "<eps>", "<sil>", "<SIL>", "[SIL]", "pau", "#", "silence", "<silence>", "<s>",
     "</s>", "<p:>", "{SL}", "!SIL"],
)  # fmt: skip
def test_every_spelling_of_silence_is_left_out(silence):
    assert words_of({"words": [(0.0, 1.0, silence), (1.0, 2.0, "word")]}) == [("word", True)]


@pytest.mark.parametrize("word", ["spa", "silent", "silo", "space", "silences", "paul", "s", "p", "unknown", "#1"])
def test_words_that_resemble_silence_stay(word):
    assert words_of({"words": [(0.0, 1.0, word), (1.0, 2.0, "x")]}) == [(word, True), ("x", True)]


def test_a_bare_silence_that_the_transcript_says_is_a_word():
    tiers = {"words": [(0.0, 0.5, "SILENCE"), (0.5, 1.0, "sil"), (1.0, 1.5, "<silence>"), (1.5, 2.0, "OOV")]}
    assert words_of(tiers, spoken=["silence", "oov"]) == [("SILENCE", True), ("OOV", True)]


@pytest.mark.parametrize(
    "unknown", ["<unk>", "<UNK>", "[unk]", "[UNK]", "spn", "SPN", "<spn>", "oov", "<OOV>", "{unk}"]
)
def test_an_unknown_word_and_its_neighbours_are_not_trusted(unknown):
    labels = ["a", "b", "", unknown, "c", "d"]
    intervals = [(place, place + 1, label) for place, label in enumerate(labels)]
    assert words_of({"words": intervals}) == [("a", True), ("b", False), (UNKNOWN, False), ("c", False), ("d", True)]


@pytest.mark.parametrize("phone", ["spn", "SPN", "<spn>"])
def test_a_word_without_pronunciation_keeps_its_spelling_and_is_not_trusted_nor_its_neighbours(phone):
    intervals = [(place, place + 1, label) for place, label in enumerate("abcde")]
    phones = [(0, 2, "AA"), (2, 3, phone), (3, 3.5, "AA"), (3.5, 5, "B")]
    assert words_of({"words": intervals, "phones": phones}) == [
        ("a", True), ("b", False), ("c", False), ("d", False), ("e", True),
    ]  # fmt: skip


def test_of_several_speakers_the_segments_own_is_read():
    tiers = {
        "anna - words": [(0.0, 1.0, "hello")], "anna - phones": [(0.0, 1.0, "spn")],
        "bo - lee - words": [(0.0, 1.0, "bye")], "bo - lee - phones": [(0.0, 1.0, "B")],
    }  # fmt: skip
    assert words_of(tiers, "anna") == [("hello", False)]
    assert words_of(tiers, "bo - lee") == [("bye", True)]
    with pytest.raises(InputError, match=r"named words or 'carl - words'; the interval tiers are: 'anna - words', "):
        words_of(tiers, "carl")


@pytest.mark.parametrize("name", ["words", "Words", "WORDS", "word", " words ", "someone - words"])
def test_the_only_words_tier_is_read_whoever_it_names(name):
    assert words_of({"phones": [(0.0, 1.0, "X")], name: [(0.0, 1.0, "hello")]}, "anna") == [("hello", True)]


@pytest.mark.parametrize("names", [[], ["phones"], ["utterances"], ["words", "Words"], ["anna - words", "anna - word"]])
def test_without_one_words_tier_the_tiers_are_listed(names):
    with pytest.raises(InputError) as caught:
        words_of({name: [(0.0, 1.0, "x")] for name in names}, "anna")
    assert str(caught.value).endswith("the interval tiers are: " + (", ".join(map(repr, names)) or "none"))


def test_words_of_a_span_are_those_whose_middle_lies_in_it():
    intervals = [(place, place + 1, label) for place, label in enumerate("abcdefghijkl")]
    found = [IntervalTier("words", 0.0, 12.0, 12, "", "x")]
    found[0].__dict__["intervals"] = intervals
    for start_s, end_s in [(3.0, 6.0), (3.4, 6.4), (2.6, 5.6), (0.0, 12.0), (-5.0, 1.0), (11.0, 20.0), (5.0, 5.0)]:
        expected = [label for start, end, label in intervals if start_s <= (start + end) / 2 < end_s]
        assert [w.word for w in word_intervals(found, None, "x", span_s=(start_s, end_s))] == expected


def test_a_word_beside_the_span_that_has_no_pronunciation_makes_the_first_in_it_untrusted():
    intervals = [(place, place + 1, label) for place, label in enumerate("abcdef")]
    tiers = {"words": intervals, "phones": [(0, 2, "A"), (2, 3, "spn"), (3, 6, "A")]}
    assert words_of(tiers, span_s=(3.0, 6.0)) == [("d", False), ("e", True), ("f", True)]


def checked_reading(data):
    """Whatever the bytes are: an InputError, or tiers with ordered, finite times."""
    try:
        tiers = parse_textgrid(data, "fuzz")
        for tier in tiers:
            starts = [start for start, _, _ in tier.intervals]
            assert starts == sorted(starts)
            assert all(start <= end for start, end, _ in tier.intervals)
            assert all(math.isfinite(time) for start, end, _ in tier.intervals for time in (start, end))
            assert len(tier.intervals) == tier.size
        word_intervals(tiers, "s", "fuzz", spoken=["sil"], span_s=(0.5, 1.5))
    except InputError as error:
        assert str(error).startswith("fuzz: ")


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_or_read(data):
    checked_reading(data)


PIECES = ['"', '""', "!", "\n", " ", "<exists>", "<absent>", "0", "1", "2.5", "-1", "1e-05", "nan", "9" * 30, "=", "e",
          '"IntervalTier"', '"TextTier"', '"words"', "xmin = ", "\ufeff", "\u00a0", "\x00", "[1]:"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_arbitrary_values_after_a_whole_head_are_refused_or_read(pieces):
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n2\n<exists>\n1\n"IntervalTier"\n"words"\n0\n2\n'
    checked_reading((head + "".join(pieces)).encode())
    checked_reading((head + " ".join(pieces)).encode())


@given(st.randoms(use_true_random=False), st.sampled_from([long_text, short_text]), st.booleans())
def test_damaged_files_are_refused_or_read(source: random.Random, form, wide):
    tiers = {"s - words": WORDS, "s - phones": [*PHONES[:4], (1.125, 2.0, 'a ""b"" c')]}
    content = form(tiers)
    data = bytearray(b"\xff\xfe" + content.encode("utf-16-le") if wide else content.encode())
    for _ in range(source.randint(1, 4)):
        place, other = source.randrange(len(data)), source.randrange(len(data))
        kind = source.randrange(5)
        if kind == 0:
            data[place] = source.randrange(256)
        elif kind == 1:
            del data[place : place + source.randint(1, 40)]
        elif kind == 2:
            data[place:place] = data[other : other + source.randint(1, 60)]
        elif kind == 3:
            data[place:place] = source.choice([b"1000000000000", b'"', b'""', b" 1 ", b"-", b"e9", b"!", b"\n"])
        else:
            del data[max(place, 20) :]
        data = data or bytearray(b" ")
    checked_reading(bytes(data))


@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.floats(0, 9), st.text(st.characters(codec="utf-8"), max_size=6)), max_size=8
    ),
    st.sampled_from([long_text, short_text]),
)
def test_what_is_written_is_read_back(intervals, form):
    ordered = sorted((min(a, b), max(a, b), label) for a, b, label in intervals)
    tiers = {"words": ordered, "phones": ordered}
    assert read(form(tiers, 9.0)) == tiers


def test_files_read_as_praatio_reads_them(tmp_path: Path):
    praatio = pytest.importorskip("praatio.textgrid")
    tiers = {"words": WORDS, "phones": PHONES}
    for form in (long_text, short_text):
        path = tmp_path / f"{form.__name__}.TextGrid"
        path.write_text(form(tiers), encoding="utf-8")
        theirs = praatio.openTextgrid(str(path), includeEmptyIntervals=True)
        assert read(path.read_bytes()) == {t.name: [tuple(entry) for entry in t.entries] for t in theirs.tiers}
