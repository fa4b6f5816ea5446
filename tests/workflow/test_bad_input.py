"""Bad input through the whole data half of the workflow: what is good comes through, what is not is named."""

import json

import numpy as np
import pytest
import soundfile

HOSTILE_IDS = ["../../../evil", 'quo"ted', "it's; touch evil", "/etc/evil"]


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def rejected_rows(folder):
    return {
        row["id"]: row
        for path in sorted(folder.rglob("*.rejected.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }


@pytest.fixture
def demo_rows(demo):
    header, *rows = (demo / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    names = header.split("\t")
    return [dict(zip(names, row.split("\t"), strict=True)) for row in rows]


@pytest.fixture
def workplace(tmp_path, demo, demo_rows):
    """A folder three levels down, so that an id that climbs out would be seen; inputs of two speakers of the demo."""
    folder = tmp_path / "a/b/work"
    (folder / "inputs").mkdir(parents=True)
    speakers = sorted({row["speaker"] for row in demo_rows})[:2]
    good = [row for speaker in speakers for row in demo_rows if row["speaker"] == speaker][:24]
    good += [row for row in demo_rows if row["speaker"] == speakers[1]][:12]
    good = list({row["segment_id"]: row | {"audio": str(demo / row["audio"])} for row in good}.values())
    config = {
        "run": "bad",
        "max_rejected_fraction": 0.4,
        "corpus": {"manifest": "inputs/manifest.tsv", "shards": 2},
        "align": {"embedded": {"lexicon": str(demo / "lexicon.txt")}, "reference": None, "threads": 1},
        "glossary": {
            "terms": [str(demo / "glossary_filtered.json")],
            "aliases": [str(demo / "alt2main.json")],
        },
        "splits": {"test_speakers": speakers[:1], "dev_speakers": 0.0, "unseen_terms": 0.2},
        "export": {"formats": ["flat", "funasr"], "interchange": True},
    }
    return folder, good, config


def write_manifest(folder, rows, extra_lines=()):
    columns = list(rows[0])
    lines = ["\t".join(columns), *("\t".join(row[name] for name in columns) for row in rows), *extra_lines]
    (folder / "inputs/manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_good_rows_reach_export_and_every_bad_one_is_named(workplace, tmp_path, run_snakemake):
    folder, good, config = workplace
    inputs = folder / "inputs"
    soundfile.write(inputs / "zero.wav", np.zeros(0), 16_000)
    soundfile.write(inputs / "nan.wav", np.full(16_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    (inputs / "text.wav").write_text("not a wave file")
    whole = {name: "" for name in ("recording_id", "offset_s", "duration_s") if name in good[0]}
    bad_audio = [
        good[0] | whole | {"segment_id": f"bad-{name}", "audio": str(inputs / f"{name}.wav")}
        for name in ("none", "zero", "nan", "text")
    ]
    bad_ids = [good[0] | {"segment_id": identifier} for identifier in HOSTILE_IDS]
    write_manifest(folder, [*good, *bad_audio, *bad_ids, good[0]], ["a line\tof two cells"])
    before = tree(tmp_path)

    run = run_snakemake(folder, "merge", "export", configfile=config)

    assert run.status == 0, run.output[-3000:]
    assert "Traceback" not in run.output
    rejected = rejected_rows(folder / "data/bad")
    first_bad = len(good) + 2
    expected = {
        "bad-none": "missing_audio",
        "bad-zero": "unreadable_audio",
        "bad-nan": "not_finite",
        "bad-text": "unreadable_audio",
        **dict.fromkeys(HOSTILE_IDS, "bad_id"),
        good[0]["segment_id"]: "duplicate_id",
        "": "broken_line",
    }
    assert {name: rejected[name]["reason"] for name in expected} == expected
    for number, name in enumerate(expected, start=first_bad):
        assert rejected[name]["detail"].startswith(f"inputs/manifest.tsv:{number}: "), rejected[name]

    funnel = json.loads((folder / "data/bad/funnel.json").read_text())
    steps = {step["step"]: step for step in funnel["steps"]}
    assert (steps["manifest"]["input"], steps["corpus"]["kept"]) == (len(good) + 10, len(good))
    exported = [
        json.loads(line)
        for split in ("train", "test")
        for line in (folder / f"data/bad/export/flat/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(exported) == steps["splits"]["kept"] > len(good) / 2
    for row in exported:
        info = soundfile.info(row["audio"])
        assert (info.samplerate, info.channels) == (16_000, 1)
    merged = json.loads((folder / "data/bad/term_level_chunks_merged.json").read_text(encoding="utf-8"))
    assert len(merged) == steps["chunks"]["kept"]

    inside = ("a/b/work/data", "a/b/work/logs", "a/b/work/.snakemake", "a/b/work/test_config.yaml")
    assert [path for path in sorted(tree(tmp_path) - before) if not path.startswith(inside)] == []
    assert {path.name for path in (folder / "data").iterdir()} == {"bad"}
    assert [path for path in tree(tmp_path) if "evil" in path] == []


def test_too_many_bad_rows_fail_the_stage_and_the_logs_last_line_says_why(workplace, run_snakemake):
    folder, good, config = workplace
    missing = [good[0] | {"segment_id": f"gone{number}", "audio": "gone.wav"} for number in range(len(good))]
    write_manifest(folder, [*good, *missing])

    run = run_snakemake(folder, "export", configfile=config | {"corpus": {**config["corpus"], "shards": 1}})

    assert run.status != 0
    assert "Traceback" not in run.output
    last_line = (folder / "logs/bad/corpus/0000.log").read_text(encoding="utf-8").splitlines()[-1]
    assert f"{len(good)} of {2 * len(good)} segments were rejected, more than max_rejected_fraction" in last_line
    assert f"missing_audio ({len(good)})" in last_line
    assert last_line in run.output
    assert not (folder / "data/bad/corpus/0000.parquet").exists()
    assert len(rejected_rows(folder / "data/bad")) == len(good)


def test_an_unknown_key_names_the_nearest_known_one(workplace, run_snakemake):
    folder, good, config = workplace
    write_manifest(folder, good)
    run = run_snakemake(folder, "export", configfile=config | {"chunks": {"contexts": 1.0}})
    assert run.status != 0
    assert "unknown key 'chunks.contexts'; did you mean 'chunks.context_s'?" in run.output
    assert "Traceback" not in run.output
    assert not (folder / "data").exists()


def test_a_missing_manifest_is_named(workplace, run_snakemake):
    folder, _, config = workplace
    run = run_snakemake(folder, "export", configfile=config)
    assert run.status != 0
    assert "inputs/manifest.tsv" in run.output
    assert "Traceback" not in run.output
    assert not list((folder / "data").rglob("*.parquet"))


def test_a_manifest_without_a_required_column_fails_with_its_name_as_last_line(workplace, run_snakemake):
    folder, _, config = workplace
    (folder / "inputs/manifest.tsv").write_text("segment_id\taudio\tspoken\ns1\ta.wav\thello\n")
    run = run_snakemake(folder, "corpus", configfile=config)
    assert run.status != 0
    last_line = (folder / "logs/bad/corpus_manifest.log").read_text(encoding="utf-8").splitlines()[-1]
    assert "inputs/manifest.tsv:1: the header lacks the column text or txt" in last_line
    assert last_line in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"train": {"schedule": {"sub_batch_size": 8}}}, "sub_batch_size is for pooled retrievers"),
        (
            {"retrieval": {"interaction": "pooled", "pooled": {"towers": "qwen2_audio"}}},
            "retrieval.encoder, bundled:whisper-tiny.en, is a model of type whisper",
        ),
        (
            {"retrieval": {"encoder": "whisper", "interaction": "pooled", "pooled": {"towers": "qwen2_audio"}}},
            "retrieval.encoder, whisper, is a model of type whisper",
        ),
    ],
)
def test_a_retriever_that_cannot_be_trained_is_refused_before_anything_is_encoded(
    workplace, run_snakemake, changed, told
):
    folder, good, config = workplace
    write_manifest(folder, good)
    (folder / "whisper").mkdir()
    (folder / "whisper/config.json").write_text('{"model_type": "whisper"}')
    run = run_snakemake(folder, configfile=config | changed, arguments=("--dry-run",))
    assert run.status != 0 and told in run.output, run.output[-2000:]
    assert "Traceback" not in run.output
