"""Chunks by whether training hears their speaker: headline figures are those of unseen speakers alone."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow.compute as pc

from earmark.artifacts import read_table

Item = TypeVar("Item")
NO_SEEN_SPEAKER = {
    "reason": "no test speaker is heard in training; splits.test_recordings gives test some of the training speakers'"
}


def heard_speakers(splits: Path) -> frozenset[str]:
    """The speakers of the chunks in `splits`/train.parquet."""
    return frozenset(pc.unique(read_table(splits / "train.parquet", ["speaker_id"])["speaker_id"]).to_pylist())


def by_speaker(
    items: Sequence[Item], heard: Container[str], speaker: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """The items of unseen speakers, and those of seen ones: `heard` in training."""
    unseen = [item for item in items if speaker(item) not in heard]
    return unseen, [item for item in items if speaker(item) in heard]
