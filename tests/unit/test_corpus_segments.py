import json

import numpy as np
import pyarrow as pa
import pytest

from earmark.artifacts import CORPUS, iterate_rows, rejected_path, table_counts, write_table
from earmark.corpus.segments import check_segments
from earmark.corpus.sharding import MANIFEST
from earmark.errors import TooManyRejectedError


def check(tmp_path, rows, fraction=1.0):
    """`rows`: (segment_id, audio path, offset_s, duration_s). Returns kept rows and reasons, both by segment id."""
    table = [
        {
            "segment_id": segment_id,
            "recording_id": "r",
            "speaker_id": "s",
            "audio_path": str(path),
            "offset_s": offset_s,
            "duration_s": duration_s,
            "text": "hello",
            "language": "en",
            "split": None,
            "source": f"m.tsv:{number}",
        }
        for number, (segment_id, path, offset_s, duration_s) in enumerate(rows, start=2)
    ]
    write_table(tmp_path / "in.parquet", pa.Table.from_pylist(table, schema=MANIFEST))
    output = tmp_path / "out.parquet"
    check_segments(
        tmp_path / "in.parquet", output, min_duration_s=0.2, max_duration_s=5.0, min_peak=0.001,
        max_rejected_fraction=fraction,
    )  # fmt: skip
    rejected = [json.loads(line) for line in rejected_path(output).read_text().splitlines()]
    return {row["segment_id"]: row for row in iterate_rows(output)}, {row["id"]: row for row in rejected}


def test_a_segment_gets_its_true_duration(tmp_path, write_wav):
    path = write_wav("a.wav", seconds=2.0)
    kept, rejected = check(
        tmp_path, [("whole", path, 0.0, None), ("tail", path, 1.5, None), ("rounded", path, 1.0, 1.04)]
    )
    assert {name: row["duration_s"] for name, row in kept.items()} == {"whole": 2.0, "tail": 0.5, "rounded": 1.0}
    assert rejected == {}
    assert set(kept["whole"]) == set(CORPUS.names)


def test_stereo_at_44100_hz_is_kept_with_its_duration(tmp_path, write_wav):
    kept, _ = check(tmp_path, [("s", write_wav("a.wav", seconds=1.0, rate=44_100, channels=2), 0.0, None)])
    assert kept["s"]["duration_s"] == pytest.approx(1.0, abs=1e-4)


def test_each_kind_of_bad_audio_is_rejected_with_its_reason_and_place(tmp_path, write_wav):
    good = write_wav("good.wav", seconds=6.0)
    (tmp_path / "text.wav").write_text("this is text")
    broken = np.full(16_000, 0.1)
    broken[8_000] = np.nan
    not_finite = write_wav("nan.wav", samples=broken, subtype="FLOAT")
    rows = [
        ("missing", tmp_path / "none.wav", 0.0, None),
        ("long_name", tmp_path / ("x" * 5000), 0.0, None),
        ("unreadable", tmp_path / "text.wav", 0.0, None),
        ("zero_length", write_wav("zero.wav", samples=np.zeros(0)), 0.0, None),
        ("nan", not_finite, 0.0, None),
        ("nan_resampled", write_wav("nan44.wav", samples=broken, rate=44_100, subtype="FLOAT"), 0.0, None),
        ("silent", write_wav("silent.wav", samples=np.zeros(16_000)), 0.0, None),
        ("beyond", good, 5.0, 1.2),
        ("far_beyond", good, 7.0, None),
        ("short", good, 0.0, 0.1),
        ("long", good, 0.0, 5.5),
        ("good", good, 0.0, 5.0),
        ("clean_half_of_nan", not_finite, 0.0, 0.4),
    ]
    kept, rejected = check(tmp_path, rows)
    assert sorted(kept) == ["clean_half_of_nan", "good"]
    assert {name: row["reason"] for name, row in rejected.items()} == {
        "missing": "missing_audio",
        "long_name": "missing_audio",
        "unreadable": "unreadable_audio",
        "zero_length": "unreadable_audio",
        "nan": "not_finite",
        "nan_resampled": "not_finite",
        "silent": "silence",
        "beyond": "outside_recording",
        "far_beyond": "outside_recording",
        "short": "too_short",
        "long": "too_long",
    }
    for number, (name, path, *_) in enumerate(rows, start=2):
        if name in rejected:
            assert rejected[name]["detail"].startswith(f"m.tsv:{number}: ")
            assert str(path) in rejected[name]["detail"]
    counts = table_counts(tmp_path / "out.parquet")
    assert (counts["input"], counts["kept"], counts["rejected"]) == (13, 2, 11)


def test_too_many_rejected_segments_fail_the_shard(tmp_path, write_wav):
    with pytest.raises(TooManyRejectedError, match=r"1 of 2 segments .* missing_audio \(1\)"):
        check(tmp_path, [("a", write_wav("a.wav"), 0.0, None), ("b", tmp_path / "none.wav", 0.0, None)], fraction=0.4)
    assert not (tmp_path / "out.parquet").exists()


def test_an_empty_shard_passes(tmp_path):
    assert check(tmp_path, [], fraction=0.0) == ({}, {})
