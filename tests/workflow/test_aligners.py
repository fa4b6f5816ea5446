"""The aligners other than the embedded one, through the workflow, from corpus to chunks."""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile

import pyarrow.parquet as pq
import pytest

from earmark.files import read_json


@pytest.fixture(scope="module")
def utterances(demo):
    """The first utterances of two recordings: {segment_id: manifest row with its known word times}."""
    times = {row["segment_id"]: row["words"] for row in pq.read_table(demo / "word_times.parquet").to_pylist()}
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["recording_id"].endswith("-01")]
    recordings = sorted({row["recording_id"] for row in rows})[:2]
    chosen = [row for name in recordings for row in [row for row in rows if row["recording_id"] == name][:6]]
    return {row["segment_id"]: row | {"words": times[row["segment_id"]]} for row in chosen}


@pytest.fixture
def workplace(tmp_path, demo, utterances):
    """A folder with a manifest of the utterances, and a configuration that cuts chunks from them."""
    columns = ("segment_id", "recording_id", "audio", "offset_s", "duration_s", "speaker", "text")
    lines = ["\t".join(row[name] for name in columns) for row in utterances.values()]
    (tmp_path / "manifest.tsv").write_text("\n".join(["\t".join(columns), *lines]) + "\n", encoding="utf-8")
    config = {
        "run": "r",
        "corpus": {"manifest": "manifest.tsv", "audio_root": str(demo), "shards": 2},
        "glossary": {"terms": [str(demo / "glossary_filtered.json")], "aliases": [str(demo / "alt2main.json")]},
        "align": {"reference": str(demo / "word_times.parquet")},
    }
    return tmp_path, config


def text_grid(words, duration_s, shift_s=0.0):
    """One words tier in the long text format."""
    cells, clock = [], 0.0
    for word in words:
        start_s, end_s = word["start_s"] + shift_s, word["end_s"] + shift_s
        if start_s > clock:
            cells.append((clock, start_s, ""))
        cells.append((start_s, end_s, word["word"]))
        clock = end_s
    if clock < duration_s:
        cells.append((clock, duration_s, ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {duration_s!r}"]
    lines += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"']
    lines += ['        name = "words"', "        xmin = 0", f"        xmax = {duration_s!r}"]
    lines += [f"        intervals: size = {len(cells)}"]
    for number, (start_s, end_s, label) in enumerate(cells, start=1):
        lines += [f"        intervals [{number}]:", f"            xmin = {start_s!r}", f"            xmax = {end_s!r}"]
        lines += [f'            text = "{label}"']
    return "\n".join(lines) + "\n"


def aligned_words(folder):
    return {
        row["segment_id"]: row
        for shard in sorted(folder.glob("alignments/*.parquet"))
        for row in pq.read_table(shard).to_pylist()
    }


def test_textgrids_come_in_with_exactly_their_times_and_the_chain_goes_on(workplace, utterances, run_snakemake):
    folder, config = workplace
    for segment_id, row in utterances.items():
        place = folder / "grids" / row["speaker"]
        place.mkdir(parents=True, exist_ok=True)
        words = row["words"][:-1] if segment_id == next(iter(utterances)) else row["words"]  # one lacks its last word
        (place / f"{segment_id}.TextGrid").write_text(text_grid(words, float(row["duration_s"])), encoding="utf-8")
    (folder / "grids/nobody.TextGrid").write_text(text_grid([], 1.0), encoding="utf-8")
    config["align"] |= {"backend": "textgrid", "textgrid": {"path": "grids"}}
    config["max_rejected_fraction"] = 0.5

    run = run_snakemake(folder, "align", "chunks", configfile=config)

    assert run.status == 0, run.output[-3000:]
    found = aligned_words(folder / "data/r")
    first, *others = utterances
    assert set(found) == set(others)
    for segment_id in others:
        times = [(word["word"], word["start_s"], word["end_s"]) for word in found[segment_id]["words"]]
        known = [(word["word"], word["start_s"], word["end_s"]) for word in utterances[segment_id]["words"]]
        assert times == [(word, pytest.approx(start), pytest.approx(end)) for word, start, end in known]
    rejected = "".join(path.read_text() for path in sorted((folder / "data/r/alignments").glob("*.rejected.jsonl")))
    assert f'"id": "{first}", "reason": "words_differ"' in rejected
    assert '"nobody' in (folder / "data/r/textgrids.rejected.jsonl").read_text(encoding="utf-8")
    summary = read_json(folder / "data/r/evaluation/alignment.json")
    assert (summary["segments"], summary["accuracy"]["all"]["mean_ms"]) == (len(others), 0.0)
    assert list((folder / "data/r/chunks").glob("*.parquet"))


def test_the_backend_textgrid_asks_for_its_path(workplace, run_snakemake):
    folder, config = workplace
    config["align"] |= {"backend": "textgrid"}
    run = run_snakemake(folder, "align", configfile=config)
    assert run.status != 0
    assert "set align.textgrid.path" in run.output
    assert "Traceback" not in run.output


def test_mfa_aligns_every_shard_and_its_kept_textgrids_give_the_same_words(workplace, utterances, repo, run_snakemake):
    folder, config = workplace
    with zipfile.ZipFile(folder / "model.zip", "w") as model:
        known = {
            name: [[w["word"], w["start_s"], w["end_s"]] for w in row["words"]] for name, row in utterances.items()
        }
        model.writestr("stand_in.json", json.dumps({"times": known}))
    words = sorted({word["word"] for row in utterances.values() for word in row["words"]})
    (folder / "words.dict").write_text("".join(f"{word}\tAH0\n" for word in words), encoding="utf-8")
    config["align"] |= {
        "backend": "mfa",
        "mfa": {
            "program": str(repo / "tests/mfa_stand_in/mfa"),
            "acoustic_model": "model.zip",
            "dictionary": "words.dict",
            "keep_textgrids": True,
        },
    }
    run = run_snakemake(folder, "align", "chunks", configfile=config)
    assert run.status == 0, run.output[-3000:]
    found = aligned_words(folder / "data/r")
    assert set(found) == set(utterances)
    kept = sorted((folder / "data/r/alignments/textgrids").iterdir())
    assert [path.name for path in kept] == ["0000.tar", "0001.tar"]
    names = []
    for path in kept:
        with tarfile.open(path) as archive:
            names += archive.getnames()
    assert len([name for name in names if name.endswith(".TextGrid")]) == len(utterances)

    config["run"] = "again"
    config["align"] |= {"backend": "textgrid", "textgrid": {"path": "data/r/alignments/textgrids"}}
    run = run_snakemake(folder, "align", configfile=config)
    assert run.status == 0, run.output[-3000:]
    again = aligned_words(folder / "data/again")
    assert {name: row["words"] for name, row in again.items()} == {name: row["words"] for name, row in found.items()}
