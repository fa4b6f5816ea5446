"""What each speech language model trained: the table beside its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from earmark.trained_share import trained_share


def trained_rows(audits: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of {backend, part, parameters, trainable, share, state, checkpoint}: each backend whole, then its parts.

    `audits` are the audit.json of models, by backend. `checkpoint` is the size in bytes of what training saved, None
    for a part, and where it is not known.
    """
    for backend, audit in audits.items():
        yield _row(backend, "all", audit, audit.get("checkpoint", {}).get("bytes"))
        for name, part in audit["parts"].items():
            yield _row(backend, name, part, None)


def _row(backend: str, part: str, counted: Mapping[str, Any], checkpoint: int | None) -> dict[str, Any]:
    parameters, trainable = counted["parameters"], counted["trainable"]
    return {
        "backend": backend,
        "part": part,
        "parameters": parameters,
        "trainable": trainable,
        **trained_share(parameters, trainable),
        "checkpoint": checkpoint,
    }
