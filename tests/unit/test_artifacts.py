import json
import os
import signal
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earmark.artifacts import (
    StageTable,
    atomic_path,
    iterate_rows,
    read_table,
    rejected_path,
    table_counts,
    write_json,
    write_jsonl,
    write_table,
)
from earmark.errors import InputError, TooManyRejectedError
from earmark.files import read_json

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.float64())])


def stage(path, *, fraction=1.0, **options):
    return StageTable(path, SCHEMA, unit="rows", max_rejected_fraction=fraction, **options)


def fill(table, kept, rejected, reasons=("odd",)):
    for number in range(kept + rejected):
        table.rejected.input += 1
        if number < kept:
            table.keep({"id": f"r{number}", "value": float(number)})
        else:
            table.reject(f"r{number}", reasons[number % len(reasons)], f"in.tsv:{number}: is odd")


def test_atomic_path_leaves_nothing_when_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "deep/x.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.json", "old")]


def test_atomic_path_removes_what_a_killed_writer_of_the_same_path_left(tmp_path):
    (tmp_path / ".x.json.4711.tmp").write_text("half")
    (tmp_path / ".y.json.4711.tmp").write_text("somebody else's")
    write_json(tmp_path / "x.json", {"a": "é"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".y.json.4711.tmp", "x.json"]
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_jsonl_rows_with_newlines_and_quotes_stay_one_line_each(tmp_path):
    rows = [{"id": 'a"\n\u2028b'}, {"id": "\U0001f600\0"}]
    assert write_jsonl(tmp_path / "x.jsonl", rows) == 2
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows


def test_kept_and_rejected_rows_and_counts_travel_with_the_table(tmp_path):
    path = tmp_path / "x.parquet"
    with stage(path) as table:
        fill(table, 7, 3, ("odd", "even"))
    assert pq.read_table(path).num_rows == 7
    rejected = [json.loads(line) for line in rejected_path(path).read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rejected] == [("r7", "even"), ("r8", "odd"), ("r9", "even")]
    assert table_counts(path) == {
        "unit": "rows",
        "input": 10,
        "kept": 7,
        "rejected": 3,
        "reasons": {"even": 2, "odd": 1},
    }


@pytest.mark.parametrize("miscount", [1, -1])
def test_rows_that_do_not_add_up_stop_the_stage_without_an_artifact(tmp_path, miscount):
    path = tmp_path / "x.parquet"
    with pytest.raises(AssertionError, match=r"2 kept \+ 1 rejected is not"), stage(path) as table:
        fill(table, 2, 1)
        table.rejected.input += miscount
    assert [p.name for p in tmp_path.iterdir()] == ["x.rejected.jsonl"]


def test_too_many_rejected_names_file_and_commonest_reason_and_leaves_the_rejected_rows(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(TooManyRejectedError) as caught, stage(path, fraction=0.2) as table:
        fill(table, 2, 3, ("odd", "rare", "odd"))
    message = str(caught.value)
    assert "3 of 5 rows" in message
    assert "odd (2)" in message
    assert "r2: in.tsv:2: is odd" in message
    assert str(tmp_path / "x.rejected.jsonl") in message
    assert not path.exists()
    assert len(rejected_path(path).read_text().splitlines()) == 3


def test_exactly_the_tolerated_fraction_passes(tmp_path):
    with stage(tmp_path / "x.parquet", fraction=0.25) as table:
        fill(table, 3, 1)
    assert table_counts(tmp_path / "x.parquet")["rejected"] == 1


def test_no_input_rows_make_an_empty_table_with_its_schema(tmp_path):
    with stage(tmp_path / "x.parquet", fraction=0.0):
        pass
    assert pq.read_table(tmp_path / "x.parquet").schema.names == SCHEMA.names
    assert table_counts(tmp_path / "x.parquet")["input"] == 0


def test_a_failing_stage_leaves_no_table(tmp_path):
    with pytest.raises(RuntimeError), stage(tmp_path / "x.parquet", rows_per_group=1) as table:
        fill(table, 3, 0)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_does_not_fit_the_schema_leaves_no_table(tmp_path):
    with pytest.raises(pa.ArrowInvalid), stage(tmp_path / "x.parquet") as table:
        table.rejected.input += 1
        table.keep({"id": "a", "value": "no number"})
    assert not (tmp_path / "x.parquet").exists()
    assert list(tmp_path.glob(".*")) == []


def test_rows_leave_memory_group_by_group(tmp_path):
    path = tmp_path / "x.parquet"
    with stage(path, rows_per_group=10) as table:
        for number in range(35):
            table.rejected.input += 1
            table.keep({"id": str(number), "value": 0.0})
            assert len(table._pending) < 10
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 10, 5]
    assert [row["id"] for row in iterate_rows(path, batch_size=7)] == [str(number) for number in range(35)]


def test_rows_kept_as_a_table_stand_between_those_kept_one_by_one(tmp_path):
    path = tmp_path / "x.parquet"
    with stage(path, rows_per_group=10) as table:
        table.rejected.input = 27
        table.keep({"id": "first", "value": 0.0})
        table.keep_table(pa.table({"id": [str(number) for number in range(25)], "value": [0.5] * 25}, schema=SCHEMA))
        table.keep({"id": "last", "value": 1.0})
    assert [row["id"] for row in iterate_rows(path)] == ["first", *map(str, range(25)), "last"]
    metadata = pq.read_metadata(path)
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == 10
    assert table_counts(path)["kept"] == 27


def test_a_writer_killed_by_sigkill_leaves_no_artifact_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "x.parquet"
    code = f"""
        import pyarrow as pa
        from pathlib import Path
        from earmark.artifacts import StageTable
        schema = pa.schema([("id", pa.string())])
        with StageTable(Path({str(path)!r}), schema, unit="rows", max_rejected_fraction=1, rows_per_group=1) as table:
            for number in range(10_000_000):
                table.rejected.input += 1
                table.keep({{"id": str(number)}})
                print("row", flush=True)
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"row\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
    with stage(path) as table:
        fill(table, 1, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "x.rejected.jsonl"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{\n"a": 1,\n}', ":3: not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"", ":1: not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"[" * 200_000, "not usable JSON"),
    ],
)
def test_broken_json_is_an_input_error_that_names_the_place(tmp_path, content, says):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)
    assert says in str(caught.value)


def test_json_from_windows_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes('\ufeff{"a": 1}\r\n'.encode())
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_missing_file_or_a_folder_instead_of_json_is_an_input_error(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="check the path"):
            read_json(path)


def test_reading_what_is_no_parquet_or_carries_no_counts_is_an_input_error(tmp_path):
    (tmp_path / "x.parquet").write_text("text")
    write_table(tmp_path / "y.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(InputError, match="not a Parquet file"):
        read_table(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="there is no such file"):
        read_table(tmp_path / "z.parquet")
    with pytest.raises(InputError, match="no row counts"):
        table_counts(tmp_path / "y.parquet")


def test_another_readers_library_sees_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    with stage(tmp_path / "x.parquet") as table:
        fill(table, 5, 0)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows["id"][:] == [f"r{number}" for number in range(5)]
