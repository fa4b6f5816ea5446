"""Ids, names, terms and texts that mean harm, through the whole workflow: they are refused, or arrive as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

from earmark.artifacts import iterate_rows
from earmark.report.page import write_report

LONG = "x" * 10_000
HOSTILE = [
    'quo"ted', "it's; touch evil", "sl/ash", "back\\slash", "new\nline", "ta\tb", "😀", "..", "../../../evil",
    "/etc/evil", "$(touch evil)", "`touch evil`", "-rf", "--help", "NUL\0", "e\u0301te\u0327", "\u202elatigid", "مرحبا",
    "{run}", "%s", "<script>alert(1)</script>", "\ud800", LONG,
]  # fmt: skip
FORMATS = ["flat", "conversation", "funasr", "funasr_nano"]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shown(display: str) -> str:
    """A term as it is displayed: without blanks around it."""
    return display.strip()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory, demo, run_snakemake):
    """(outer folder, folder of the run three below it, good rows, configuration, what there was before)."""
    outer = tmp_path_factory.mktemp("outer")
    folder = outer / "a/b/work"
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    header, *lines = (demo / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    speakers = {"rms": "test", "awb": "dev", "slt": "train"}
    good = [row for name in speakers for row in [row for row in rows if row["speaker"] == name][:24]]
    for number, row in enumerate(good):
        row["audio"] = str(demo / row["audio"])
        row["recording_id"] = f"{HOSTILE[number % len(HOSTILE)]}{row['recording_id']}"
    # Names that are no ids are changed until they are; half of a surrogate pair is no text at all.
    good = [row for row in good if "\ud800" not in row["recording_id"]]
    whole = {key: value for key, value in good[0].items() if key in ("audio", "offset_s", "duration_s")}
    bad = [good[0] | {"segment_id": name} for name in HOSTILE if name != "مرحبا"]
    bad += [good[0] | {"segment_id": f"speaker-{n}", "speaker": name} for n, name in enumerate(HOSTILE)]
    bad += [whole | {"segment_id": f"text-{n}", "text": name, "speaker": "slt"} for n, name in enumerate(HOSTILE)]
    bad += [good[0] | {"segment_id": f"audio-{n}", "audio": name} for n, name in enumerate(HOSTILE)]
    write_rows(inputs / "manifest.jsonl", good + bad)

    glossary = json.loads((demo / "glossary_filtered.json").read_text(encoding="utf-8"))
    heard = " ".join(row["text"].lower() for row in good)
    spoken = [phrase for phrase in glossary if phrase in heard]
    for phrase, name in zip(spoken, HOSTILE * len(spoken), strict=False):
        if shown(name) and "\ud800" not in name:
            glossary[phrase]["term"] = name
    glossary |= {name: {} for name in HOSTILE}
    write = {"terms.json": glossary, "aliases.json": {f"{name} alias": spoken[0] for name in HOSTILE}}
    for name, content in write.items():
        (inputs / name).write_text(json.dumps(content))
    config = {
        "run": "hostile",
        "max_rejected_fraction": 0.9,
        "corpus": {"format": "jsonl", "manifest": "inputs/manifest.jsonl", "shards": 1},
        "align": {
            "embedded": {"lexicon": str(demo / "lexicon.txt"), "min_quality": None},
            "reference": None,
            "threads": 1,
        },
        "glossary": {"terms": ["inputs/terms.json"], "aliases": ["inputs/aliases.json"]},
        "splits": {"test_speakers": ["rms"], "dev_speakers": ["awb"], "unseen_terms": 0.1},
        "export": {"formats": FORMATS, "interchange": True},
        "retrieval": {"random_control": False},
        "train": {"schedule": {"epochs": 1}},
        "evaluate": {"bootstrap_resamples": 5, "held_out_chunks": 0},  # one speaker trains, whom nobody can hold out
    }
    before = tree(outer)
    run = run_snakemake(folder, "export", "report", configfile=config, timeout=400)
    assert run.status == 0, run.output[-4000:]
    assert "Traceback" not in run.output
    return outer, folder, good, config, before


def test_nothing_is_written_outside_the_run_and_no_command_is_run(attacked):
    outer, folder, *_, before = attacked
    inside = tuple(f"a/b/work/{name}" for name in ("data", "logs", ".snakemake", "test_config.yaml"))
    assert [path for path in sorted(tree(outer) - before) if not path.startswith(inside)] == []
    assert {path.name for path in (folder / "data").iterdir()} == {"hostile"}
    assert not [path for path in tree(outer) if Path(path).name == "evil"]
    assert not Path("/etc/evil").exists()


def test_every_hostile_row_is_rejected_or_exported(attacked):
    _, folder, good, *_ = attacked
    data = folder / "data/hostile"
    funnel = json.loads((data / "funnel.json").read_text(encoding="utf-8"))
    assert funnel["steps"][0]["input"] == len(rows_of(folder / "inputs/manifest.jsonl"))
    # The index rejects terms of these names as well, as unpronounceable.
    rejected = {(row["id"], row["reason"]) for path in data.rglob("*.rejected.jsonl") for row in rows_of(path)}
    for name in HOSTILE:
        assert name == "مرحبا" or name == "\ud800" or (name, "bad_id") in rejected

    merged = json.loads((data / "term_level_chunks_merged.json").read_text(encoding="utf-8"))
    segments = {entry["segment_id"] for entry in merged}
    assert len(segments & {row["segment_id"] for row in good}) > len(good) / 2
    assert len({entry["recording_id"] for entry in merged}) > len(HOSTILE) / 2
    for entry in merged:
        path = Path(entry["term_chunk_audio"])
        assert path.is_relative_to(data / "export/wavs")
        assert len(path.name.encode()) <= 255 and soundfile.info(path).samplerate == 16_000

    answers = {
        line["text"] for split in ("train", "dev", "test") for line in rows_of(data / f"export/flat/{split}.jsonl")
    }
    displayed = {shown(name) for name in HOSTILE if name != "\ud800"}
    arrived = {name for name in displayed if any(name in answer for answer in answers)}
    assert len(arrived) > len(displayed) / 2


def test_hostile_terms_are_in_the_glossary_or_in_its_conflicts(attacked):
    _, folder, *_ = attacked
    data = folder / "data/hostile/glossary"
    terms = {entry["term"] for entry in json.loads((data / "glossary.json").read_text(encoding="utf-8")).values()}
    reported = {row["surface"] for row in rows_of(data / "conflicts.jsonl")}
    assert {"\\ud800", "😀", ".."} <= reported
    assert {LONG, "$(touch evil)", "<script>alert(1)</script>", "e\u0301te\u0327"} <= terms


def test_the_report_shows_hostile_names_as_text(attacked, tmp_path):
    _, folder, *_ = attacked
    data = folder / "data/hostile"
    # Readers of JSON documents reject half of a surrogate pair with the id that holds it.
    rejected = data / "corpus/manifest.rejected.jsonl"
    row = {"id": "half of \ud800", "reason": "bad_id", "detail": LONG}
    rejected.write_text(json.dumps(row) + "\n" + rejected.read_text(encoding="utf-8"), encoding="utf-8")
    config = json.loads((data / "config.json").read_text(encoding="utf-8"))
    write_report(
        data, folder / "logs/hostile/benchmarks", ["0000"], config, tmp_path / "page.html", tmp_path / "c.json"
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "half of \\ud800" in page
    assert "x" * 1000 not in page


def test_hostile_entries_of_a_chunk_file_are_rejected_or_exported(attacked, run_snakemake):
    outer, folder, *_, config, _ = attacked
    merged = json.loads((folder / "data/hostile/term_level_chunks_merged.json").read_text(encoding="utf-8"))
    first = next(entry for entry in merged if entry["term_chunk_audio_ground_truth_terms"])
    changed = [
        first | {"segment_id": f"{field}-{number}"} | {field: [name] if field.endswith("terms") else name}
        for field in ("segment_id", "recording_id", "speaker_id", "term_chunk_audio", "term_chunk_text",
                      "term_chunk_audio_ground_truth_terms", "term_start_time")
        for number, name in enumerate(HOSTILE)
    ]  # fmt: skip
    (folder / "inputs/chunks.json").write_text(json.dumps(merged + changed))
    again = config | {"run": "again", "chunks": {"from_file": ["inputs/chunks.json"]}, "export": {"formats": ["flat"]}}
    before = tree(outer)
    run = run_snakemake(folder, "merge", "export", configfile=again)
    assert run.status == 0, run.output[-4000:]
    assert "Traceback" not in run.output

    data = folder / "data/again"
    funnel = json.loads((data / "funnel.json").read_text(encoding="utf-8"))
    assert funnel["steps"][0]["input"] == len(merged) + len(changed)
    kept = {row["segment_id"] for row in iterate_rows(data / "chunks/0000.parquet")}
    rejected = [row for name in ("manifest", "0000") for row in rows_of(data / f"chunks/{name}.rejected.jsonl")]
    assert len(rejected) + pq.read_metadata(data / "chunks/0000.parquet").num_rows == len(merged) + len(changed)
    assert {row["segment_id"] for row in merged} <= kept
    texts = {f"term_chunk_text-{number}" for number, name in enumerate(HOSTILE) if name != "\ud800"}
    assert texts <= kept
    # Letters and digits of every script may be an id; some of the names are terms of the glossary.
    assert kept - texts - {row["segment_id"] for row in merged} <= {
        "مرحبا",
        *(f"{name}-{HOSTILE.index('مرحبا')}" for name in ("recording_id", "speaker_id")),
        *(f"term_chunk_audio_ground_truth_terms-{number}" for number in range(len(HOSTILE))),
    }
    new = [path for path in tree(outer) - before if not path.startswith(("a/b/work/data/again", "a/b/work/logs/again"))]
    assert [path for path in new if not path.startswith("a/b/work/.snakemake")] == []
