"""Checking a configuration against its JSON schema, with answers a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from earmark.errors import ConfigError


def check_config(config: Mapping[str, Any], schema_path: Path) -> None:
    """Raise ConfigError listing everything in `config` that the schema forbids, unknown keys with the nearest known."""
    schema = yaml.safe_load(schema_path.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    problems = [line for error in validator.iter_errors(dict(config)) for line in _sentences(error)]
    if problems:
        raise ConfigError("the configuration is not usable:\n" + "\n".join(f"  - {line}" for line in sorted(problems)))


def _sentences(error: jsonschema.ValidationError) -> Iterator[str]:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for key in sorted(set(error.instance) - set(known), key=str):
            full = f"{where}.{key}" if where else str(key)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            yield f"unknown key '{full}'; did you mean '{where + '.' if where else ''}{near}'?"
    elif error.validator == "required":
        yield f"{where or 'the top level'}: {error.message}; config.yaml shows the default"
    elif error.validator in ("anyOf", "oneOf"):
        wanted = error.schema.get("description", "one of the forms that config.yaml describes")
        yield f"{where} is {error.instance!r}; expected {wanted}"
    elif error.validator == "enum":
        yield f"{where} is {error.instance!r}; expected one of {', '.join(map(str, error.validator_value))}"
    else:
        yield f"{where}: {error.message}"
