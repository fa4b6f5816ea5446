"""Real recordings with their own glossary, through the same workflow, from corpus to export."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, run_snakemake: Callable, speech: Path, repo: Path) -> Path:
    # The tracked configuration names the recordings relative to the repository: a link puts them there.
    folder = tmp_path_factory.mktemp("speech")
    (folder / "shared").symlink_to(speech.parent)
    (folder / "work").mkdir()
    run = run_snakemake(folder / "work", "export", "merge", configfile=repo / "tests/configs/speech.yaml")
    assert run.status == 0, run.output[-4000:]
    return folder / "work/data/speech"


def test_every_utterance_is_aligned_and_no_row_is_lost(run_folder: Path) -> None:
    steps = {step["step"]: step for step in json.loads((run_folder / "funnel.json").read_text())["steps"]}
    assert steps["manifest"]["input"] == 11
    assert steps["align"]["kept"] == 11


def test_the_terms_that_are_spoken_are_found_and_newgate_is_not(run_folder: Path) -> None:
    rows = [row for shard in sorted(run_folder.glob("chunks/*.parquet")) for row in pq.read_table(shard).to_pylist()]
    found = {(row["segment_id"], row["main_term"]) for row in rows if row["has_term"]}
    assert found == {
        ("jfk", "fellow americans"),
        ("2412-153948-0000", "antecedents"),
        ("2412-153948-0000", "native country"),
        ("2412-153948-0001", "pecuniary advantage"),
        ("1088-134315-0000", "humanity"),
        ("1088-134315-0000", "universal recognition"),
        ("LJ002-0035", "the press yard"),
        ("ss01-0870", "john dashwood"),
    }
    aliases = {row["term"] for row in rows if row["has_term"]} - {row["main_term"] for row in rows}
    assert {"my fellow americans", "mister john dashwood"} <= aliases


def test_chunks_hold_their_term_with_a_second_of_context(run_folder: Path) -> None:
    for shard in sorted(run_folder.glob("chunks/*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
            assert rate == 16_000
            assert abs(len(samples) / rate - (row["end_s"] - row["start_s"])) < 1e-3
            if row["has_term"]:
                assert row["start_s"] == max(0.0, row["term_start_s"] - 1.0)
                assert row["term"] in row["text"]


def test_all_four_formats_and_the_interchange_file_hold_every_chunk(run_folder: Path) -> None:
    splits = json.loads((run_folder / "funnel.json").read_text())["splits"]
    for name in ("funasr_nano", "funasr", "conversation", "flat"):
        for split, counts in splits.items():
            lines = (run_folder / f"export/{name}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(lines) == counts["chunks"]
    entries = json.loads((run_folder / "term_level_chunks_merged.json").read_text())
    assert len(entries) == sum(counts["chunks"] for counts in splits.values())
    assert all(Path(entry["term_chunk_audio"]).is_file() for entry in entries)


def test_the_interchange_file_enters_at_the_splits_and_gives_the_same_terms(
    run_folder: Path, run_snakemake: Callable, repo: Path, tmp_path: Path
) -> None:
    merged = run_folder / "term_level_chunks_merged.json"
    (tmp_path / "again.yaml").write_text(f"run: again\nchunks: {{from_file: ['{merged}']}}\n", encoding="utf-8")
    place = run_folder.parent.parent  # the tracked configuration names its glossary from here
    run = run_snakemake(place, "merge", configfile=[repo / "tests/configs/speech.yaml", tmp_path / "again.yaml"])
    assert run.status == 0, run.output[-4000:]
    again = place / "data/again"
    assert not (again / "corpus").exists()
    assert not (again / "alignments").exists()
    steps = {step["step"]: step for step in json.loads((again / "funnel.json").read_text())["steps"]}
    assert list(steps) == ["manifest", "chunks", "splits"]
    assert steps["chunks"]["kept"] == len(json.loads(merged.read_text()))

    def terms(folder: Path) -> dict[str, list[tuple]]:
        columns = ["segment_id", "speaker_id", "main_term", "text"]
        return {
            path.stem: sorted(tuple(map(str, row.values())) for row in pq.read_table(path, columns=columns).to_pylist())
            for path in sorted(folder.glob("splits/*.parquet"))
        }

    assert terms(again) == terms(run_folder)
