import json

import pytest

from earmark import json_items
from earmark.errors import InputError
from earmark.json_items import list_items

DOCUMENT = {"version": -1.25e-3, "n": 17, "yes": True, "audios": [{"a": "\u00e9"}, 2.5, None, "x,]}"], "end": [[]]}


@pytest.mark.parametrize("chunk", range(1, 40))
def test_it_does_not_matter_where_the_file_is_cut_into_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_items, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(DOCUMENT, indent=1), encoding="utf-8")
    assert list(list_items(path, "audios")) == DOCUMENT["audios"]
    path.write_text(json.dumps([1, 2.5, *DOCUMENT["audios"]]), encoding="utf-8")
    assert list(list_items(path)) == [1, 2.5, *DOCUMENT["audios"]]


@pytest.mark.parametrize("text", ["[1, 2", "[1, 2.", "[1 2]", '{"a": 1}', "[1] 2", "", "[1,, 2]", "[" * 100_000])
def test_what_is_no_list_is_refused_with_the_place(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not whole JSON from character \d+ on"):
        list(list_items(tmp_path / "a.json"))
