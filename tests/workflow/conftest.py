"""A run small enough for a test, whole enough to train: a few talks of the demo corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TALKS = 2  # of each speaker below
SPEAKERS = {"train": ["slt", "heart"], "dev": ["awb"], "test": ["rms"]}


@pytest.fixture(scope="session")
def small_config(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration over a few talks of the demo, trained for two epochs: every stage runs, no figure means much."""
    header, *lines = (demo / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    recording, speaker, text = (columns.index(name) for name in ("recording_id", "speaker", "text"))
    wanted = {name for names in SPEAKERS.values() for name in names}
    talks: dict[str, list[str]] = {}
    for line in lines:
        cells = line.split("\t")
        found = talks.setdefault(cells[speaker], [])
        if cells[speaker] in wanted and cells[recording] not in found and len(found) < TALKS:
            found.append(cells[recording])
    kept = [line for line in lines if line.split("\t")[recording] in talks[line.split("\t")[speaker]]]
    manifest = tmp_path_factory.mktemp("small") / "manifest.tsv"
    manifest.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    # The first is said by training speakers too, and must be kept out of their chunks.
    unseen = ("hypertension", "photosynthesis", "yokohama", "gibraltar", "centrifuge")
    heard = " ".join(line.split("\t")[text] for line in kept)
    return {
        "run": "small",
        "corpus": {"manifest": str(manifest), "audio_root": str(demo), "shards": 2},
        "align": {
            # Scoring is most of an alignment's time; tests/workflow/test_real_speech.py has it.
            "embedded": {"lexicon": str(demo / "lexicon.txt"), "min_quality": None},
            "reference": str(demo / "word_times.parquet"),
        },
        "glossary": {
            "terms": [str(demo / "glossary_filtered.json")],
            "aliases": [str(demo / "alt2main.json")],
        },
        "splits": {
            "test_speakers": SPEAKERS["test"],
            "dev_speakers": SPEAKERS["dev"],
            "unseen_terms": [term for term in unseen if term in heard],
        },
        "train": {"schedule": {"epochs": 2}},
        "evaluate": {"bootstrap_resamples": 20, "distractors": [50]},
    }
