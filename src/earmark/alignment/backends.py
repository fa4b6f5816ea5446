"""Choosing an aligner by its name in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark.alignment.aligner import Aligner


def make_aligner(
    backend: str, settings: Mapping[str, Any], *, threads: int, seed: int, textgrids: Path | None, keep: Path | None
) -> Aligner:
    """The aligner `backend` (embedded, mfa, textgrid) with its own part of the configuration.

    `textgrids`: what pack_textgrids wrote for this shard (textgrid). `keep`: where to put this shard's TextGrids,
    packed (mfa), or None. An aligner imports what it needs only when chosen.
    """
    if backend == "embedded":
        from earmark.alignment.embedded import EmbeddedAligner

        return EmbeddedAligner(
            Path(settings["lexicon"]) if settings["lexicon"] else None,
            guess_pronunciations=settings["guess_pronunciations"],
            min_quality=settings["min_quality"],
            threads=threads,
            seed=seed,
        )
    if backend == "mfa":
        from earmark.alignment.mfa import MfaAligner

        return MfaAligner(
            program=settings["program"],
            acoustic_model=settings["acoustic_model"],
            dictionary=settings["dictionary"],
            g2p_model=settings["g2p_model"],
            beam=settings["beam"],
            retry_beam=settings["retry_beam"],
            threads=threads,
            keep_textgrids=keep,
        )
    if backend == "textgrid":
        from earmark.alignment.textgrid_aligner import TextGridAligner

        if textgrids is None:
            raise AssertionError("the backend textgrid needs the shard's packed TextGrids")
        return TextGridAligner(textgrids, offset=settings["offset"])
    raise AssertionError(f"no aligner is called {backend!r}")
