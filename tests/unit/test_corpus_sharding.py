import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.artifacts import iterate_rows, read_json, table_counts
from earmark.corpus import sharding
from earmark.corpus.sharding import split_manifest
from earmark.errors import InputError, TooManyRejectedError


def split(folder, lines, shard_count, fraction=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.tsv"
    manifest.write_text("segment_id\taudio\ttext\trecording_id\tduration_s\n" + "".join(f"{line}\n" for line in lines))
    shards = {f"{number:04d}": folder / f"shards/{number:04d}.parquet" for number in range(shard_count)}
    split_manifest(
        manifest, shards, folder / "manifest.json", format="tsv", audio_root=None, language="en",
        max_rejected_fraction=fraction,
    )  # fmt: skip
    return {name: list(iterate_rows(path)) for name, path in shards.items()}


def lines_of(durations):
    """`durations[recording]` is a list of segment durations; "" where the manifest states none."""
    return [
        f"s{recording}-{number}\tr{recording}.wav\thello\tr{recording}\t{seconds}"
        for recording, segments in enumerate(durations)
        for number, seconds in enumerate(segments)
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    durations=st.lists(st.lists(st.sampled_from([0.5, 3, 40, ""]), min_size=1, max_size=4), min_size=1, max_size=12),
    shard_count=st.integers(1, 5),
)
def test_no_recording_is_split_nothing_is_lost_and_loads_are_balanced(tmp_path, durations, shard_count):
    lines = lines_of(durations)
    shards = split(tmp_path, lines, shard_count)
    assert sorted(row["segment_id"] for rows in shards.values() for row in rows) == sorted(
        line.split("\t")[0] for line in lines
    )
    recordings = [{row["recording_id"] for row in rows} for rows in shards.values()]
    assert sum(map(len, recordings)) == len(set().union(*recordings)) == len(durations)
    loads = [sum(row["duration_s"] or sharding.UNKNOWN_DURATION_S for row in rows) for rows in shards.values()]
    longest = max(sum(seconds or sharding.UNKNOWN_DURATION_S for seconds in segments) for segments in durations)
    assert max(loads) - min(loads) <= longest + 1e-9


def test_the_same_recordings_share_a_shard_whatever_the_order_of_lines(tmp_path):
    lines = lines_of([[1, 2], [3], [3], [0.5], [7]])
    first = split(tmp_path / "a", lines, 3)
    second = split(tmp_path / "b", lines[::-1], 3)
    assert {name: {row["segment_id"] for row in rows} for name, rows in first.items()} == {
        name: {row["segment_id"] for row in rows} for name, rows in second.items()
    }


def test_the_same_manifest_gives_byte_identical_shards(tmp_path):
    split(tmp_path, lines_of([[1], [2], [3]]), 2)
    before = [path.read_bytes() for path in sorted((tmp_path / "shards").glob("*.parquet"))]
    split(tmp_path, lines_of([[1], [2], [3]]), 2)
    assert [path.read_bytes() for path in sorted((tmp_path / "shards").glob("*.parquet"))] == before


def test_more_shards_than_recordings_leaves_empty_shards_with_counts(tmp_path):
    shards = split(tmp_path, lines_of([[1], [2]]), 5)
    assert sorted(len(rows) for rows in shards.values()) == [0, 0, 0, 1, 1]
    assert sum(table_counts(tmp_path / f"shards/{name}.parquet")["kept"] for name in shards) == 2


def test_many_shards_are_written_in_several_passes_with_the_same_result(tmp_path, monkeypatch):
    lines = lines_of([[number % 5 + 1] for number in range(20)])
    at_once = split(tmp_path / "a", lines, 7)
    monkeypatch.setattr(sharding, "OPEN_SHARDS", 2)
    in_passes = split(tmp_path / "b", lines, 7)
    assert [[row["segment_id"] for row in rows] for rows in at_once.values()] == [
        [row["segment_id"] for row in rows] for rows in in_passes.values()
    ]


def test_bad_lines_are_counted_and_kept_aside(tmp_path):
    lines = [*lines_of([[1], [2]]), "s9\tr9.wav\thello\tr9", "s0-0\tr0.wav\thello\tr0\t1"]
    split(tmp_path, lines, 1)
    assert read_json(tmp_path / "manifest.json") == {
        "unit": "manifest lines",
        "input": 4,
        "kept": 2,
        "rejected": 2,
        "reasons": {"broken_line": 1, "duplicate_id": 1},
        "without_speaker": 2,
    }
    rejected = [json.loads(line) for line in (tmp_path / "manifest.rejected.jsonl").read_text().splitlines()]
    assert rejected[1] == {
        "id": "s0-0", "reason": "duplicate_id", "detail": f"{tmp_path}/manifest.tsv:5: also on line 2",
    }  # fmt: skip


@pytest.mark.parametrize(("speakers", "count"), [(["anna", "", ""], 2), (["anna", "bo", "bo"], 0)])
def test_segments_without_a_speaker_are_counted_and_warned_of_in_one_line(tmp_path, caplog, speakers, count):
    manifest = tmp_path / "m.tsv"
    lines = [f"s{number}\tr{number}.wav\thello\t{speaker}\n" for number, speaker in enumerate(speakers)]
    manifest.write_text("segment_id\taudio\ttext\tspeaker\n" + "".join(lines))
    split_manifest(
        manifest, {"0": tmp_path / "0.parquet"}, tmp_path / "m.json", format="tsv", audio_root=None, language="en",
        max_rejected_fraction=0.0,
    )  # fmt: skip
    assert read_json(tmp_path / "m.json")["without_speaker"] == count
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    says = "segments name no speaker; their recording stands in for it, so one voice may be on both sides of a split"
    assert warnings == ([f"{count} {says}"] if count else [])
    rows = list(iterate_rows(tmp_path / "0.parquet"))
    assert [row["speaker_id"] for row in rows] == [name or f"r{number}" for number, name in enumerate(speakers)]
    assert "speaker_stated" not in rows[0]


def test_the_demos_splits_are_those_of_the_default_configuration(repo, demo):
    configured = yaml.safe_load((repo / "config.yaml").read_text(encoding="utf-8"))["splits"]
    planned = yaml.safe_load((demo / "splits.yaml").read_text(encoding="utf-8"))
    assert {key: set(names) for key, names in configured.items()} == {key: set(names) for key, names in planned.items()}


def test_too_many_bad_lines_stop_the_stage_before_any_shard_is_written(tmp_path):
    with pytest.raises(TooManyRejectedError, match="broken_line"):
        split(tmp_path, [*lines_of([[1]]), "broken"], 1, fraction=0.4)
    assert not (tmp_path / "shards").exists()
    assert (tmp_path / "manifest.rejected.jsonl").is_file()


def test_a_manifest_with_a_header_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no segment"):
        split(tmp_path, [], 1)
