"""Exports of a run with more wavs than may be files, and its interchange list in shards, which enter another run."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile

SPOKEN = [["ohm"], ["new york", "ohm"], [], ["volt"], [], ["big apple"], ["volt", "ohm"], ["ohm"]]


def entries(folder: Path) -> list[dict[str, Any]]:
    """Eight chunks of four speakers, with wavs of noise."""
    for number in range(len(SPOKEN)):
        noise = np.random.default_rng(number).integers(-3000, 3000, 16_000).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
    return [
        {
            "segment_id": f"s{number}", "recording_id": f"r{number % 4}", "speaker_id": f"spk{number % 4}",
            "term_chunk_audio": f"{number}.wav", "term_chunk_text": " and ".join(terms) or "nothing of it",
            "term_chunk_audio_ground_truth_terms": terms, "term_start_time": 0.2, "term_end_time": 0.6,
            "extended_start_time": 0.0, "extended_end_time": 1.0,
        }
        for number, terms in enumerate(SPOKEN)
    ]  # fmt: skip


def rows(folder: Path) -> list[tuple[str, ...]]:
    columns = ["segment_id", "speaker_id", "main_term", "other_terms", "text"]
    return sorted(
        tuple(map(str, row.values()))
        for path in folder.glob("splits/*.parquet")
        for row in pq.read_table(path, columns=columns).to_pylist()
    )


def test_packed_wavs_unpack_to_where_every_line_names_them_and_shards_enter_again(
    tmp_path: Path, run_snakemake: Callable
) -> None:
    (tmp_path / "chunks.json").write_text(json.dumps(entries(tmp_path)), encoding="utf-8")
    (tmp_path / "terms.txt").write_text("ohm\nvolt\nnew york\n", encoding="utf-8")
    (tmp_path / "aliases.json").write_text('{"big apple": "new york"}', encoding="utf-8")
    root = tmp_path / "scratch"
    config = {
        "run": "first",
        "corpus": {"shards": 2},
        "glossary": {"terms": ["terms.txt"], "aliases": ["aliases.json"]},
        "chunks": {"from_file": ["chunks.json"]},
        "splits": {"test_speakers": ["spk1"], "dev_speakers": ["spk2"], "unseen_terms": []},
        "export": {
            "formats": ["flat", "funasr"],
            "interchange_shard_rows": 3,
            "max_wav_files": 0,
            "wav_root": str(root),
        },
    }
    run = run_snakemake(tmp_path, "export", configfile=config)
    assert run.status == 0, run.output[-4000:]
    first = tmp_path / "data/first"
    assert not list(first.rglob("*.wav"))
    for path in first.glob("export/wavs/*/wavs.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(root, filter="data")
    lines = [json.loads(line) for path in first.glob("export/flat/*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == len(SPOKEN)
    assert all(Path(line["audio"]).is_file() for line in lines)
    steps = json.loads((first / "export/funnel.json").read_text())["steps"]
    assert sum(step["kept"] for step in steps if step["format"] == "funasr") == len(SPOKEN)

    shards = sorted(first.glob("term_level_chunks/*.json"))
    assert [path.stem.removeprefix("term_level_chunks_") for path in shards] == ["0_3", "3_6", "6_8"]
    again = config | {"run": "again", "chunks": {"from_file": [str(path) for path in shards]}, "export": {}}
    run = run_snakemake(tmp_path, "merge", configfile=again)
    assert run.status == 0, run.output[-4000:]
    assert rows(tmp_path / "data/again") == rows(first)
