import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.artifacts import read_json
from earmark.errors import InputError
from earmark.glossary.merge import merge_glossary


def merge(folder, terms, aliases):
    """`terms`, `aliases`: lists of file contents. Returns glossary, alt2main, {(kind, surface): conflict}."""
    folder.mkdir(exist_ok=True)
    files = {"terms": [], "aliases": []}
    for kind, contents in (("terms", terms), ("aliases", aliases)):
        for number, content in enumerate(contents):
            path = folder / f"{kind}{number}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            files[kind].append(path)
    merge_glossary(files["terms"], files["aliases"], folder / "out")
    lines = (folder / "out/conflicts.jsonl").read_text(encoding="utf-8").splitlines()
    conflicts = {(row["kind"], row["surface"]): row for row in map(json.loads, lines)}
    assert len(conflicts) == len(lines)
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
