import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.errors import InputError
from earmark.files import read_json
from earmark.glossary.filters import TermFilters
from earmark.glossary.merge import merge_glossary
from earmark.text import normalise

# The rules of merging are tested with the filters off, so that terms can be short.
OFF = TermFilters(min_characters=1, max_digits=1.0, stop_words=False, numbers_and_times=False)


def merge(folder, terms, aliases, *, filters=OFF, blacklist=None, keep_ambiguous=True, language="en"):
    """`terms`, `aliases`: lists of file contents. Returns glossary, alt2main, {(kind, surface): conflict}."""
    folder.mkdir(exist_ok=True)
    files = {"terms": [], "aliases": []}
    for kind, contents in (("terms", terms), ("aliases", aliases)):
        for number, content in enumerate(contents):
            path = folder / f"{kind}{number}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            files[kind].append(path)
    if blacklist is not None:
        (folder / "blacklist.txt").write_text("\n".join(blacklist), encoding="utf-8")
    merge_glossary(
        files["terms"], files["aliases"], folder / "out", filters=filters, keep_ambiguous=keep_ambiguous,
        language=language, blacklist=None if blacklist is None else folder / "blacklist.txt",
    )  # fmt: skip
    lines = (folder / "out/conflicts.jsonl").read_text(encoding="utf-8").splitlines()
    conflicts = {(row["kind"], row["surface"]): row for row in map(json.loads, lines)}
    assert len(conflicts) == len(lines)
    if keep_ambiguous:  # short test words are common ones; that they are flagged has a test of its own
        conflicts = {key: row for key, row in conflicts.items() if key[0] != "ambiguous_alias"}
    return read_json(folder / "out/glossary.json"), read_json(folder / "out/alt2main.json"), conflicts


def test_terms_and_aliases_come_out_under_normalised_keys_with_display_forms(tmp_path):
    glossary, alt2main, conflicts = merge(
        tmp_path,
        [{"New-York City": {"term": "New York City", "short_description": "a city", "translations": {"zh": "纽约"}}}],
        [{"The Big Apple": "new york city", "NYC": "New York City"}],
    )
    assert glossary == {
        "new york city": {
            "term": "New York City",
            "short_description": "a city",
            "translations": {"zh": "纽约"},
            "aliases": ["nyc", "the big apple"],
        }
    }
    assert alt2main == {"nyc": "new york city", "the big apple": "new york city"}
    assert conflicts == {}


def test_an_entry_without_a_display_form_shows_its_phrase(tmp_path):
    glossary, _, _ = merge(tmp_path, [{"Newgate": {}}], [])
    assert glossary == {"newgate": {"term": "Newgate", "aliases": []}}


def test_a_later_term_file_replaces_the_entry_of_an_earlier_one_and_says_so(tmp_path):
    glossary, _, conflicts = merge(
        tmp_path, [{"Ohm": {"term": "Ohm", "short_description": "old"}}, {"ohm": {"term": "OHM"}}], []
    )
    assert glossary == {"ohm": {"term": "OHM", "aliases": []}}
    [row] = conflicts.values()
    assert (row["kind"], row["source"]) == ("duplicate_term", str(tmp_path / "terms1.json"))


def test_a_later_alias_file_overrides_an_earlier_one_and_both_main_terms_are_named(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"a": {}, "b": {}}], [{"x": "a"}, {"X": "b"}])
    assert alt2main == {"x": "b"}
    assert conflicts["alias_of_several", "x"]["decision"] == "alias of 'b', the later entry, not of 'a'"


def test_the_same_alias_twice_for_the_same_term_is_no_conflict(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"a": {}}], [{"x": "a"}, {"X!": "A"}])
    assert (alt2main, conflicts) == ({"x": "a"}, {})


def test_aliases_inside_an_entry_are_aliases_of_its_term(tmp_path):
    glossary, alt2main, conflicts = merge(
        tmp_path, [{"New York": {"term": "New York", "aliases": ["NYC", "Big-Apple"]}}], [{"gotham": "nyc"}]
    )
    assert glossary["new york"]["aliases"] == ["big apple", "gotham", "nyc"]
    assert alt2main == {"big apple": "new york", "gotham": "new york", "nyc": "new york"}
    assert conflicts == {}


def test_a_written_glossary_is_read_back_as_it_is(tmp_path):
    first = merge(tmp_path / "first", [{"a": {"term": "A"}, "b": {}}], [{"x": "a", "y": "x"}])
    assert merge(tmp_path / "second", [first[0]], []) == first


def test_an_alias_file_overrides_the_aliases_inside_an_entry(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"a": {"aliases": ["x"]}, "b": {}}], [{"x": "b"}])
    assert alt2main == {"x": "b"}
    row = conflicts["alias_of_several", "x"]
    assert row["decision"] == "alias of 'b', the later entry, not of 'a'"
    assert row["source"] == str(tmp_path / "aliases0.json")


def test_aliases_inside_entries_follow_the_rules_of_conflict_and_name_the_term_file(tmp_path):
    _, alt2main, conflicts = merge(
        tmp_path, [{"z": {}}, {"a": {"aliases": ["x", "b", "?!", "A"]}, "b": {"aliases": ["x"]}}], []
    )
    assert alt2main == {"x": "b"}
    assert {key: row["source"] for key, row in conflicts.items()} == dict.fromkeys(
        [("alias_of_several", "x"), ("alias_is_main_term", "b"), ("empty_surface", "?!")], str(tmp_path / "terms1.json")
    )


def test_a_replaced_entry_leaves_no_aliases_behind(tmp_path):
    _, alt2main, _ = merge(tmp_path, [{"ohm": {"aliases": ["old"]}}, {"Ohm": {"aliases": ["new"]}}], [])
    assert alt2main == {"new": "ohm"}


def test_of_two_entries_with_the_same_alias_that_of_the_later_file_wins(tmp_path):
    _, alt2main, _ = merge(tmp_path, [{"a": {}, "b": {"aliases": ["x"]}}, {"a": {"aliases": ["x"]}}], [])
    assert alt2main == {"x": "a"}


def test_a_chain_of_aliases_ends_at_its_main_term(tmp_path):
    glossary, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [{"x": "y", "y": "z", "z": "main"}])
    assert alt2main == {"x": "main", "y": "main", "z": "main"}
    assert glossary["main"]["aliases"] == ["x", "y", "z"]
    assert conflicts == {}


def test_a_chain_stops_at_the_first_main_term(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"main": {}, "other": {}}], [{"x": "main", "main": "other"}])
    assert alt2main == {"x": "main"}
    assert set(conflicts) == {("alias_is_main_term", "main")}


def test_alias_cycle_is_reported_with_both_entries(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [{"x": "y", "y": "x", "leads in": "x"}])
    assert alt2main == {}
    assert {key: row["decision"] for key, row in conflicts.items()} == {
        ("alias_cycle", "x"): "dropped: x -> y -> x",
        ("alias_cycle", "y"): "dropped: y -> x -> y",
        ("alias_cycle", "leads in"): "dropped: leads in -> x -> y -> x",
    }


def test_an_alias_of_itself_is_harmless_for_a_main_term_and_a_cycle_otherwise(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [{"Main": "main", "x": "X"}])
    assert alt2main == {}
    assert {key: row["decision"] for key, row in conflicts.items()} == {("alias_cycle", "x"): "dropped: x -> x"}


def test_an_alias_whose_main_term_is_missing_is_reported_with_the_end_of_its_chain(tmp_path):
    _, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [{"x": "y", "y": "nowhere"}])
    assert alt2main == {}
    assert conflicts["missing_main_term", "x"]["decision"] == "dropped: 'nowhere' is not in the glossary"
    assert ("missing_main_term", "y") in conflicts


def test_a_main_term_is_never_an_alias_of_another(tmp_path):
    glossary, alt2main, conflicts = merge(tmp_path, [{"a": {}, "b": {}}], [{"a": "b"}])
    assert alt2main == {}
    assert glossary["b"]["aliases"] == []
    assert conflicts["alias_is_main_term", "a"]["decision"] == "stays a main term, no alias of 'b'"


def test_surfaces_without_a_letter_are_dropped_with_their_source(tmp_path):
    glossary, alt2main, conflicts = merge(tmp_path, [{"main": {}, "???": {}}], [{"😀": "main", "x": "--"}])
    assert sorted(glossary) == ["main"]
    assert alt2main == {}
    assert {key: row["source"] for key, row in conflicts.items()} == {
        ("empty_surface", "???"): str(tmp_path / "terms0.json"),
        ("empty_surface", "😀"): str(tmp_path / "aliases0.json"),
        ("empty_surface", "x"): str(tmp_path / "aliases0.json"),
    }


@pytest.mark.parametrize(
    ("terms", "aliases", "says"),
    [
        (["[]"], [], r"terms0\.json: expected a JSON object"),
        ([{"a": "text"}], [], r"terms0\.json: the entry 'a' holds a str"),
        ([{"a": {"term": None}}], [], r"terms0\.json: the term of 'a' is None"),
        ([{"a": {"term": ["A"]}}], [], r"terms0\.json: the term of 'a' is \['A'\]"),
        ([{"a": {"term": " "}}], [], r"terms0\.json: the term of 'a' is ' '"),
        ([{"a": {"aliases": "A"}}], [], r"terms0\.json: the aliases of 'a' are 'A'; expected a list of texts"),
        ([{"a": {"aliases": ["A", 1]}}], [], r"terms0\.json: the aliases of 'a' are \['A', 1\]"),
        ([{"a": {"aliases": None}}], [], r"terms0\.json: the aliases of 'a' are None"),
        ([{"a": {}}], [{"x": ["a"]}], r"aliases0\.json: the entry 'x' holds a list; expected alias to phrase"),
        (['{"a": {},\n"b": }'], [], r"terms0\.json:2: not valid JSON"),
        ([{}], [], r"terms0\.json: no usable term in the glossary; set glossary\.terms"),
        ([{"?!": {}}], [], "no usable term"),
    ],
)
def test_files_of_another_form_are_refused_by_name(tmp_path, terms, aliases, says):
    with pytest.raises(InputError, match=says):
        merge(tmp_path, terms, aliases)


_NAMES = st.text(string.ascii_lowercase[:6], min_size=1, max_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(terms=st.sets(_NAMES, min_size=1), aliases=st.dictionaries(_NAMES, _NAMES))
def test_every_alias_is_resolved_or_reported(tmp_path, terms, aliases):
    glossary, alt2main, conflicts = merge(tmp_path, [{term: {} for term in terms}], [aliases])
    assert set(glossary) == terms
    assert set(alt2main).isdisjoint(terms)
    assert set(alt2main.values()) <= terms
    reported = {surface for _, surface in conflicts}
    for alias, main in aliases.items():
        assert (alias in alt2main) + (alias in reported) + (alias == main and alias in terms) == 1
    assert {alias for entry in glossary.values() for alias in entry["aliases"]} == set(alt2main)


def test_a_single_word_that_means_more_than_its_term_is_not_used_alone(tmp_path):
    terms = {
        "Krista Siegfrids": {},
        "Professor Lindquist": {},
        "Acme Lindquist": {},
        "Granny Smith": {},
        "Theo Vance": {},
    }
    aliases = {
        "krista": "krista siegfrids", "lindquist": "professor lindquist", "apple": "granny smith",
        "vance": "theo vance", "k siegfrids": "krista siegfrids",
    }  # fmt: skip
    _, alt2main, conflicts = merge(tmp_path, [terms], [aliases], keep_ambiguous=False)
    assert alt2main == {"vance": "theo vance", "k siegfrids": "krista siegfrids"}
    decisions = {surface: row["decision"] for (kind, surface), row in conflicts.items() if kind == "ambiguous_alias"}
    assert decisions == {
        "krista": "not used alone: the first word of 'krista siegfrids', and of everything else that begins so",
        "lindquist": "not used alone: also a word of 'acme lindquist'",
        "apple": "not used alone: a common word (language: en)",
    }
    assert read_json(tmp_path / "out/ambiguous_aliases.json") == {alias: aliases[alias] for alias in sorted(decisions)}
    assert merge(tmp_path, [terms], [aliases])[1] == aliases


@pytest.mark.parametrize(
    ("language", "main", "alias", "why"),
    [
        ("de", "Helmut Kohl", "Kohl", "a common word (language: de)"),
        ("en", "Helmut Kohl", "Kohl", None),
        ("de", "Bayern München", "Bayern", "the first word of 'bayern münchen', and of everything else that begins so"),
        ("zh-CN", "苹果公司", "苹果", "a common word (language: zh-CN)"),
        ("zh", "特斯拉汽车", "特斯拉", None),
        ("zh", "复旦交通", "复旦", "also a word of '上 海 复 旦 大 学'"),
        ("ja", "東京駅", "東京", "a common word (language: ja)"),
        ("tlh", "Helmut Kohl", "Kohl", None),
        ("no code", "Helmut Kohl", "Kohl", None),
    ],
)
def test_what_is_ambiguous_depends_on_the_language(tmp_path, language, main, alias, why):
    terms = {main: {}, "上海复旦大学": {}}
    _, alt2main, conflicts = merge(tmp_path, [terms], [{alias: main}], keep_ambiguous=False, language=language)
    key = normalise(alias)
    assert alt2main == ({key: normalise(main)} if why is None else {})
    assert [row["decision"] for row in conflicts.values()] == ([] if why is None else [f"not used alone: {why}"])


def test_a_dropped_term_makes_no_alias_ambiguous(tmp_path):
    terms, aliases = [{"Professor Lindquist": {}, "Acme Lindquist": {}}], [{"lindquist": "professor lindquist"}]
    _, alt2main, conflicts = merge(
        tmp_path, terms, aliases, filters=TermFilters(), blacklist=["acme lindquist"], keep_ambiguous=False
    )
    assert alt2main == {"lindquist": "professor lindquist"}
    assert set(conflicts) == {("blacklisted", "acme lindquist")}


def test_a_dropped_alias_of_a_kept_term_is_remembered_and_stop_words_are_not(tmp_path):
    terms = {"Artificial Intelligence": {}, "World Health Organization": {}, "twenty five": {}}
    aliases = {
        "AI": "artificial intelligence", "machine brain": "artificial intelligence", "who": "world health organization",
        "Apple": "artificial intelligence", "quarter hundred": "twenty five",
    }  # fmt: skip
    merge(tmp_path, [terms], [aliases], filters=TermFilters(), blacklist=["Machine-Brain"], keep_ambiguous=False)
    dropped = read_json(tmp_path / "out/dropped_aliases.json")
    assert dropped == {"ai": "artificial intelligence", "machine brain": "artificial intelligence"}
    assert read_json(tmp_path / "out/ambiguous_aliases.json") == {"apple": "artificial intelligence"}


@pytest.mark.parametrize(
    ("surface", "kind"),
    [
        ("ai", "too_short"), ("U.S.", "too_short"), ("747 400", "mostly_digits"), ("How about that", "stop_words"),
        ("twenty-five", "numbers_and_times"), ("last Monday", "numbers_and_times"),
        ("the first of May", "numbers_and_times"),
        ("Mister Bean", "listed_prefix"), ("Acme Inc.", "listed_suffix"), ("kelvin", "blacklisted"),
    ],
)  # fmt: skip
def test_each_filter_drops_a_term_with_its_aliases_and_an_alias_alone(tmp_path, surface, kind):
    filters = TermFilters(prefixes=["mister"], suffixes=["inc"])
    key = normalise(surface)
    glossary, alt2main, conflicts = merge(
        tmp_path / "term", [{surface: {"aliases": ["long winded"]}, "photosynthesis": {}}], [],
        filters=filters, blacklist=["Kelvin"],
    )  # fmt: skip
    assert (list(glossary), alt2main) == (["photosynthesis"], {})
    assert set(conflicts) == {(kind, key), ("main_term_dropped", "long winded")}
    glossary, alt2main, conflicts = merge(
        tmp_path / "alias",
        [{"photosynthesis": {}}],
        [{surface: "photosynthesis"}],
        filters=filters,
        blacklist=["Kelvin"],
    )
    assert (list(glossary), alt2main, set(conflicts)) == (["photosynthesis"], {}, {(kind, key)})


@pytest.mark.parametrize(
    "surface", ["ohm", "手机", "b12 vitamin", "may flower", "once upon a midnight dreary", "5g network"]
)
def test_the_default_filters_keep_what_may_be_a_term(surface):
    assert TermFilters().problem(normalise(surface)) is None


def test_terms_that_differ_in_accents_alone_stay_apart_and_are_flagged(tmp_path):
    glossary, _, conflicts = merge(tmp_path, [{"Zürich": {}, "Zurich": {}, "ガス": {}, "カス": {}}], [])
    assert len(glossary) == 4
    assert set(conflicts) == {("diacritic_duplicate", "zurich")}


def test_a_json_key_that_occurs_twice_is_reported_not_swallowed(tmp_path):
    glossary, _, conflicts = merge(tmp_path, ['{"ohm": {"term": "first"}, "ohm": {"term": "second"}}'], [])
    assert glossary["ohm"]["term"] == "second"
    assert set(conflicts) == {("duplicate_term", "ohm")}


def test_tables_and_plain_lists_are_glossaries_too(tmp_path):
    (tmp_path / "a.tsv").write_text("term\tshort_description\taliases\nNew York\ta city\tBig Apple|Gotham\n")
    (tmp_path / "b.csv").write_text('phrase,term\n"ohm","Ohm, the unit"\n\n')
    (tmp_path / "c.txt").write_text("Photosynthesis\n\nVolt\n")
    (tmp_path / "d.csv").write_text("alias,term\nmains,volt\n")
    merge_glossary(
        [tmp_path / "a.tsv", tmp_path / "b.csv", tmp_path / "c.txt"], [tmp_path / "d.csv"], tmp_path / "out",
        blacklist=None, filters=TermFilters(), keep_ambiguous=True, language="en",
    )  # fmt: skip
    glossary = read_json(tmp_path / "out/glossary.json")
    assert {main: entry["term"] for main, entry in glossary.items()} == {
        "new york": "New York", "ohm": "Ohm, the unit", "photosynthesis": "Photosynthesis", "volt": "Volt",
    }  # fmt: skip
    assert glossary["new york"] == {
        "term": "New York",
        "short_description": "a city",
        "aliases": ["big apple", "gotham"],
    }
    assert read_json(tmp_path / "out/alt2main.json")["mains"] == "volt"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "name\tx\n1\t2\n", r"a\.tsv: the header lacks a column phrase or term or main_term; it has: name, x"),
        ("a.csv", "term,x\nohm\n", r"a\.csv:2: 1 columns where the header has 2"),
        ("a.tsv", b"term\n\xff\n", r"a\.tsv: not UTF-8"),
        ("a.json", '{"a": {"x": ' + "[" * 700 + "]" * 700 + "}}", r"a\.json: lists or objects are nested too deeply"),
        ("a.json", '{"a": {"x": ' + "[" * 99_999 + "]" * 99_999 + "}}", r"a\.json: not usable JSON"),
    ],
)
def test_broken_term_files_are_refused_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        merge_glossary(
            [tmp_path / name],
            [],
            tmp_path / "out",
            blacklist=None,
            filters=TermFilters(),
            keep_ambiguous=False,
            language="en",
        )


HOSTILE = [
    'quo"ted', "sl/ash", "back\\slash", "new\nline", "ta\tb", "../../up", "😀", "x" * 10_000, "a\0b", "$(touch evil)",
    "-rf", "e\u0301te\u0327", "\u202elatigid", "مرحبا", "<script>alert(1)</script>", "a\u2028c",
]  # fmt: skip


def test_hostile_surfaces_do_no_harm_as_terms_or_as_aliases(tmp_path):
    glossary, _, conflicts = merge(tmp_path, [{surface: {} for surface in HOSTILE}], [])
    assert set(conflicts) == {("empty_surface", "😀")}
    assert {entry["term"] for entry in glossary.values()} == set(HOSTILE) - {"😀"}

    _, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [dict.fromkeys(HOSTILE, "main")])
    assert set(alt2main) == {normalise(surface) for surface in HOSTILE} - {""}
    assert set(conflicts) == {("empty_surface", "😀")}


def test_half_a_surrogate_pair_costs_its_entry_alone_and_is_reported(tmp_path):
    terms = '{"good": {}, "b\\ud800d": {}, "shown": {"term": "\\udfff"}, "told": {"x": [{"y": "\\ud800"}]}}'
    aliases = '{"fine": "good", "ill\\ud800": "good", "lost": "b\\ud800d"}'
    glossary, alt2main, conflicts = merge(tmp_path, [terms, {"held": {"aliases": ["\ud800", "kept"]}}], [aliases])
    assert sorted(glossary) == ["good", "held"]
    assert alt2main == {"fine": "good", "kept": "held"}
    assert set(conflicts) == {
        ("not_unicode", surface) for surface in (r"b\ud800d", "shown", "told", r"ill\ud800", "lost", r"\ud800")
    }


@pytest.mark.parametrize("other", ["CAFÉ BAR", "Cafe\u0301-bar", "ｃａｆé　ｂａｒ", '"café" (bar)'])
def test_phrases_that_differ_in_case_composition_width_or_punctuation_alone_are_one_term(tmp_path, other):
    glossary, _, conflicts = merge(tmp_path, [{"Café-Bar": {"n": 1}, other: {"n": 2}}], [])
    assert glossary == {"café bar": {"n": 2, "term": other, "aliases": []}}
    assert set(conflicts) == {("duplicate_term", "café bar")}


def test_an_ambiguous_alias_that_is_kept_is_reported_too(tmp_path):
    merge(tmp_path, [{"Granny Smith": {}}], [{"apple": "granny smith"}])
    [line] = (tmp_path / "out/conflicts.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert (row["kind"], row["surface"]) == ("ambiguous_alias", "apple")
    assert row["decision"] == "kept, as glossary.ambiguous_aliases asks: a common word (language: en)"


def test_a_long_cycle_of_aliases_is_reported_in_short_lines(tmp_path):
    cycle = {f"a{number}": f"a{(number + 1) % 500}" for number in range(500)}
    _, alt2main, conflicts = merge(tmp_path, [{"main": {}}], [cycle])
    assert alt2main == {}
    assert len(conflicts) == 500
    assert conflicts["alias_cycle", "a0"]["decision"] == (
        "dropped: a0 -> a1 -> a2 -> a3 -> a4 -> a5 -> a6 -> a7 -> a8 -> a9 -> (500 aliases in all) -> a0"
    )


def test_a_line_of_a_list_ends_where_editors_end_it(tmp_path):
    (tmp_path / "list.txt").write_bytes("New\u2028York\r\nOhm\x0cmeter\rVolt\n".encode())
    merge_glossary(
        [tmp_path / "list.txt"], [], tmp_path / "out", blacklist=None, filters=OFF, keep_ambiguous=True, language="en"
    )
    assert list(read_json(tmp_path / "out/glossary.json")) == ["new york", "ohm meter", "volt"]


_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # halves of surrogate pairs too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(terms=st.lists(_ANY_TEXT, max_size=5), aliases=st.dictionaries(_ANY_TEXT, _ANY_TEXT, max_size=5))
def test_any_text_is_merged_or_reported(tmp_path, terms, aliases):
    contents = {"terms": {term: {} for term in ["ohm", *terms]}, "aliases": aliases}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    merge_glossary(
        [tmp_path / "terms.json"], [tmp_path / "aliases.json"], tmp_path / "out", blacklist=None, filters=OFF,
        keep_ambiguous=False,
        language="en",
    )  # fmt: skip
    known = set(read_json(tmp_path / "out/glossary.json"))
    reported = {
        json.loads(line)["surface"]
        for line in (tmp_path / "out/conflicts.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    }
    for term in terms:
        assert known_or_reported(term, known, reported)
    for name in ("alt2main", "ambiguous_aliases"):
        known.update(read_json(tmp_path / f"out/{name}.json"))
    for alias in aliases:
        assert known_or_reported(alias, known, reported)


def known_or_reported(surface, known, reported):
    shown = surface.encode("utf-8", "backslashreplace").decode()
    return normalise(surface) in known or not reported.isdisjoint([shown, normalise(surface)])
