"""Which linear layers get adapters: found in the model itself, so that a misspelt name is an error."""

from __future__ import annotations

from torch import nn

from earmark.errors import ConfigError


def target_names(targets: str) -> list[str]:
    """The names in a setting like `q_proj, v_proj`. ConfigError if there is none."""
    names = [name.strip() for name in targets.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"lora_targets {targets!r}: no name in it; give names of linear layers by comma")
    return names


def adapted_modules(layer: nn.Module, targets: str) -> list[str]:
    """Paths within a decoder layer of what `targets` name, adapted or not yet.

    ConfigError if a target names no linear layer of it: lm_head and embeddings are none.
    """
    linear = [
        name.removesuffix(".base_layer")
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    found: set[str] = set()
    for target in target_names(targets):
        matched = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not matched:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise ConfigError(
                f"lora_targets {targets!r}: {target} is no linear layer of a decoder layer; known: {known}"
            )
        found.update(matched)
    return sorted(found)
