"""What the report shows is this run's, not what an earlier configuration or a killed job left in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from earmark.report.page import _rejected_rows


def test_rejected_rows_are_those_of_backends_that_the_run_names(tmp_path: Path) -> None:
    for folder in (
        "models/qwen2_audio",
        "models/.qwen2_audio.training",
        "models/whisper_qwen3",
        "answers/whisper_qwen3",
    ):
        path = tmp_path / folder / "train_data.rejected.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"id": "a", "reason": "bad_audio", "detail": "x"}) + "\n")
    rows = _rejected_rows(tmp_path, [], [], trained=["retriever", "qwen2_audio"], answering=["qwen2_audio"])
    assert [row["file"] for row in rows] == ["models/qwen2_audio/train_data.rejected.jsonl"]
