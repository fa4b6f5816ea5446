from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earmark.corpus.records import BadEntry, Entry


def read(manifest: Path) -> Iterator[Entry | BadEntry]:
    raise NotImplementedError
