"""How much of a model, or of a part of it, trains: as a share, and in a word."""

from __future__ import annotations

from typing import Any


def trained_share(parameters: int, trainable: int) -> dict[str, Any]:
    """{share, state} of a part with so many parameters; its state is frozen, trained or partly trained."""
    states = {0: "frozen", parameters: "trained"}
    return {"share": trainable / parameters, "state": states.get(trainable, "partly trained")}
