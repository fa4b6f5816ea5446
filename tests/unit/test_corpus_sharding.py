import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.artifacts import iterate_rows, table_counts
from earmark.corpus import disk_sort, sharding
from earmark.corpus.records import Segment
from earmark.corpus.sharding import split_manifest
from earmark.errors import InputError, TooManyRejectedError
from earmark.files import read_json


def split_file(manifest, folder, shard_count, fraction=1.0):
    shards = {f"{number:04d}": folder / f"shards/{number:04d}.parquet" for number in range(shard_count)}
    split_manifest(
        manifest, shards, folder / "manifest.json", format="tsv", audio_root=None, columns={}, subset=None,
        language="en", max_rejected_fraction=fraction,
    )  # fmt: skip
    return {name: list(iterate_rows(path)) for name, path in shards.items()}


def split(folder, lines, shard_count, fraction=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.tsv"
    manifest.write_text("segment_id\taudio\ttext\trecording_id\tduration_s\n" + "".join(f"{line}\n" for line in lines))
    return split_file(manifest, folder, shard_count, fraction)


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


def test_what_is_sorted_in_many_buckets_is_what_is_sorted_in_one(tmp_path, monkeypatch):
    lines = lines_of([[number % 5 + 1] * 3 for number in range(60)])
    at_once = split(tmp_path / "a", lines, 3)
    monkeypatch.setattr(disk_sort, "BUCKET_BYTES", 1000)
    monkeypatch.setattr(sharding, "BATCH_ROWS", 7)
    monkeypatch.setattr(sharding, "SAMPLE_STEP", 2)
    counts = []
    monkeypatch.setattr(
        disk_sort, "_sorted", lambda table, real=disk_sort._sorted: counts.append(len(table)) or real(table)
    )
    in_buckets = split(tmp_path / "b", lines, 3)
    assert len(counts) > 5
    assert max(counts) < 60
    for name in at_once:
        assert [row["segment_id"] for row in at_once[name]] == [row["segment_id"] for row in in_buckets[name]]


def test_a_shards_rows_are_ordered_so_that_each_recording_is_read_front_to_back(tmp_path):
    manifest = tmp_path / "manifest.tsv"
    header = "segment_id\taudio\ttext\tchannel\toffset_s\tduration_s\n"
    places = [(audio, channel, offset) for audio in "ba" for channel in (1, 0) for offset in (10.5, 9, 0)]
    manifest.write_text(header + "".join(f"s{i}\t{a}.wav\thello\t{c}\t{o}\t1\n" for i, (a, c, o) in enumerate(places)))
    rows = split_file(manifest, tmp_path, 1)["0000"]
    assert [(row["audio_path"], row["channel"], row["offset_s"]) for row in rows] == sorted(
        (str(tmp_path / f"{audio}.wav"), channel, offset) for audio, channel, offset in places
    )


def packed(places, shard_count, tmp_path, monkeypatch):
    """Shards of segments at `places`: (recording_id, packed file, row)."""
    segments = [
        Segment(
            f"s{number}", recording, "x", f"/data/{file}", row, None, 0.0, 1.0, "hello", "en", None, f"m:{number}", True
        )
        for number, (recording, file, row) in enumerate(places)
    ]
    monkeypatch.setattr(sharding, "read_corpus", lambda *_, **__: iter(segments))
    return split_file(tmp_path, tmp_path, shard_count).values()


def test_neighbouring_rows_of_a_packed_file_share_a_shard(tmp_path, monkeypatch):
    places = [(f"r{file}-{row}", file, row) for file in ("a.parquet", "b.parquet") for row in range(2000)]
    shards = packed(places, 4, tmp_path, monkeypatch)
    assert [len(rows) for rows in shards] == pytest.approx([1000] * 4, abs=62)
    for rows in shards:
        steps = [b["audio_row"] - a["audio_row"] for a, b in itertools.pairwise(rows)]
        assert sum(step != 1 for step in steps) < 20
    few = packed(places[:8], 4, tmp_path, monkeypatch)
    assert [len(rows) for rows in few] == [2, 2, 2, 2]


def test_a_recording_spread_over_a_packed_file_is_not_split(tmp_path, monkeypatch):
    places = [(f"r{row % 7}", "a.parquet", row) for row in range(700)]
    shards = packed(places, 3, tmp_path, monkeypatch)
    recordings = [{row["recording_id"] for row in rows} for rows in shards]
    assert sum(map(len, recordings)) == 7
    assert sorted(map(len, recordings)) == [2, 2, 3]


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
    manifest = tmp_path / "manifest.tsv"
    assert rejected[1] == {"id": "s0-0", "reason": "duplicate_id", "detail": f"{manifest}:5: also at {manifest}:2"}


@pytest.mark.parametrize(("speakers", "count"), [(["anna", "", ""], 2), (["anna", "bo", "bo"], 0)])
def test_segments_without_a_speaker_are_counted_and_warned_of_in_one_line(tmp_path, caplog, speakers, count):
    manifest = tmp_path / "m.tsv"
    lines = [f"s{number}\tr{number}.wav\thello\t{speaker}\n" for number, speaker in enumerate(speakers)]
    manifest.write_text("segment_id\taudio\ttext\tspeaker\n" + "".join(lines))
    split_manifest(
        manifest, {"0": tmp_path / "0.parquet"}, tmp_path / "m.json", format="tsv", audio_root=None, columns={},
        subset=None, language="en", max_rejected_fraction=0.0,
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
    assert {key: set(configured[key]) for key in planned} == {key: set(names) for key, names in planned.items()}


def test_a_manifest_of_which_half_is_bad_fails_and_says_what_is_wrong_before_any_shard_is_written(tmp_path):
    lines = [*lines_of([[1], [2], [3]]), "broken", "s0-0\tr0.wav\thello\tr0\t1", "s1-0\tr1.wav\thello\tr1\t1"]
    with pytest.raises(TooManyRejectedError) as caught:
        split(tmp_path, lines, 1, fraction=0.4)
    message = str(caught.value)
    assert "3 of 6 manifest lines were rejected, more than max_rejected_fraction (0.4) allows" in message
    assert f"duplicate_id (2), for instance s0-0: {tmp_path}/manifest.tsv:6: also at" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.rejected.jsonl", "manifest.tsv"]
    assert len((tmp_path / "manifest.rejected.jsonl").read_text().splitlines()) == 3


def test_a_manifest_without_one_good_line_makes_empty_shards_where_that_is_tolerated(tmp_path):
    assert split(tmp_path, ["broken"], 2) == {"0000": [], "0001": []}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(ids=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), batch_rows=st.integers(1, 8))
def test_of_segments_with_one_id_the_first_is_kept_and_each_other_names_it(tmp_path, ids, batch_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "BATCH_ROWS", batch_rows)
        shards = split(tmp_path, [f"{name}\tr{number}.wav\thello\tr{number}\t1" for number, name in enumerate(ids)], 2)
    kept = {row["segment_id"]: int(row["recording_id"][1:]) for rows in shards.values() for row in rows}
    assert kept == {name: ids.index(name) for name in ids}
    manifest = tmp_path / "manifest.tsv"
    rejected = [json.loads(line) for line in (tmp_path / "manifest.rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["detail"]) for row in rejected] == [
        (name, f"{manifest}:{number + 2}: also at {manifest}:{ids.index(name) + 2}")
        for number, name in enumerate(ids)
        if ids.index(name) < number
    ]


def test_a_repeated_segment_weighs_nothing_when_shards_are_balanced(tmp_path):
    lines = [*lines_of([[10], [9], [2]]), *["s2-0\tr2.wav\thello\tr2\t9"] * 5]
    shards = split(tmp_path, lines, 2)
    assert sorted(sum(row["duration_s"] for row in rows) for rows in shards.values()) == [10, 11]


def test_the_last_digit_of_a_sum_does_not_depend_on_the_order_of_lines(tmp_path):
    durations = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.6], [0.3, 0.3], [0.2, 0.4]]
    lines = lines_of(durations)
    expected = None
    for seed in range(6):
        shuffled = [lines[place] for place in np.random.default_rng(seed).permutation(len(lines))]
        found = [[row["segment_id"] for row in rows] for rows in split(tmp_path / str(seed), shuffled, 3).values()]
        assert found == (expected := expected or found)


def test_no_temporary_file_is_left_when_writing_fails_midway(tmp_path, monkeypatch):
    def failing(*arguments):
        yield 0, next(iter(real(*arguments)))[1]
        raise RuntimeError

    real = sharding.sorted_by_shard
    monkeypatch.setattr(sharding, "sorted_by_shard", failing)
    with pytest.raises(RuntimeError):
        split(tmp_path, lines_of([[1], [2]]), 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["manifest.rejected.jsonl", "manifest.tsv", "shards"]


def test_a_killed_job_leaves_no_spool_behind(tmp_path):
    code = f"""
        import pyarrow as pa
        from pathlib import Path
        from earmark.corpus.disk_sort import Spool
        batch = pa.record_batch({{"id": ["x"] * 100_000}})
        with Spool(Path({str(tmp_path)!r}), batch.schema) as spool:
            for _ in range(100):
                spool.append(batch)
            print("spooled", flush=True)
            input()
    """
    job = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdout.readline() == b"spooled\n"
    os.kill(job.pid, signal.SIGKILL)
    job.stdin.close()
    job.stdout.close()
    assert job.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_with_a_header_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no segment"):
        split(tmp_path, [], 1)
