import pyarrow as pa
import pytest

from earmark.artifacts import CHUNKS, SPLITS, StageTable, write_json
from earmark.chunks.funnel import write_funnel
from earmark.errors import EarmarkError
from earmark.files import read_json

ONE = pa.schema([("segment_id", pa.string())])


def table(path, schema, rows, rejected=0, unit="segments"):
    with StageTable(path, schema, unit=unit, max_rejected_fraction=1.0) as stage:
        for row in rows:
            stage.rejected.input += 1
            stage.keep(row)
        for number in range(rejected):
            stage.rejected.input += 1
            stage.reject(f"{path.stem}-{number}", "odd", "in.tsv:1: is odd")
    return path


def funnel(folder, *, manifest_kept=5, corpus_rejected=1, split_rows=6):
    segments = [{"segment_id": "s"}] * 2
    chunks = [{"has_term": True}, {"has_term": True}, {"has_term": False}]
    split = [
        {"has_term": number % 3 != 2, "seen_term": number % 3 == 0 if number % 3 != 2 else None,
         "main_term": "ohm" if number % 3 != 2 else None, "speaker_id": f"speaker{number % 2}", "duration_s": 600.0}
        for number in range(split_rows)
    ]  # fmt: skip
    counts = {"unit": "manifest lines", "input": 7, "kept": manifest_kept, "rejected": 2, "reasons": {"no_text": 2}}
    counts["without_speaker"] = 3
    write_json(folder / "manifest.json", counts)
    write_funnel(
        folder / "manifest.json",
        [
            table(folder / "corpus/0.parquet", ONE, segments),
            table(folder / "corpus/1.parquet", ONE, segments, corpus_rejected),
        ],
        [table(folder / "align/0.parquet", ONE, segments), table(folder / "align/1.parquet", ONE, segments[:1], 1)],
        [table(folder / f"chunks/{n}.parquet", CHUNKS, chunks, n, unit="chunks") for n in (0, 1)],
        {
            "train": table(folder / "splits/train.parquet", SPLITS, split[:4], unit="chunks"),
            "dev": table(folder / "splits/dev.parquet", SPLITS, [], unit="chunks"),
            "test": table(folder / "splits/test.parquet", SPLITS, split[4:], unit="chunks"),
        },
        folder / "funnel.json",
    )
    return read_json(folder / "funnel.json")


def test_the_funnel_adds_up_end_to_end(tmp_path):
    result = funnel(tmp_path)
    steps = {step["step"]: (step["input"], step["kept"], step["rejected"], step["reasons"]) for step in result["steps"]}
    assert steps == {
        "manifest": (7, 5, 2, {"no_text": 2}),
        "corpus": (5, 4, 1, {"odd": 1}),
        "align": (4, 3, 1, {"odd": 1}),
        "chunks": (7, 6, 1, {"odd": 1}),
        "splits": (6, 6, 0, {}),
    }
    assert list(steps) == ["manifest", "corpus", "align", "chunks", "splits"]
    assert result["chunks"] == {"term": 4, "no_term": 2}
    assert result["splits"]["train"] == {
        "chunks": 4, "seen_term": 2, "unseen_term": 1, "no_term": 1, "main_terms": 1,
        "speakers": ["speaker0", "speaker1"], "hours": 0.6667,
    }  # fmt: skip
    assert result["splits"]["dev"]["chunks"] == 0
    assert result["seen_test_speakers"] == {"chunks": 2, "speakers": ["speaker0", "speaker1"]}


@pytest.mark.parametrize("changes", [{"manifest_kept": 6}, {"corpus_rejected": 2}, {"split_rows": 5}])
def test_numbers_that_do_not_add_up_are_refused(tmp_path, changes):
    with pytest.raises(EarmarkError):
        funnel(tmp_path, **changes)
    assert not (tmp_path / "funnel.json").exists()
