"""A Fun-ASR-Nano model directory: where it is, whether it is whole, and what its configuration says.

config.yaml, configuration.json, model.pt, Qwen3-0.6B/ (config.json, tokenizer)
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from earmark.artifacts import write_json
from earmark.errors import ConfigError, InputError
from earmark.files import read_json
from earmark.funasr_nano import environment
from earmark.funasr_nano.settings import foreign_code, merged, read_conf, without_code_keys

log = logging.getLogger(__name__)

PUBLISHED = "FunAudioLLM/Fun-ASR-Nano-2512"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_QWEN3 = "Qwen3-0.6B"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")  # one of them makes a tokenizer
_WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class ModelFolder:
    """A whole model directory."""

    path: Path  # absolute
    conf: dict[str, Any]  # its config.yaml
    files: dict[str, Any]  # file_path_metas of its configuration.json: relative paths by the key they are for
    language_model: Path  # folder of the language model's configuration and tokenizer

    def with_paths(self) -> dict[str, Any]:
        """Its configuration with all paths absolute: FunASR looks relative ones up in the working directory."""
        conf = merged(self.conf, _absolute(self.files, self.path))
        conf.pop("config", None)
        given = {
            "init_param": str(self.path / self.files.get("init_param", "model.pt")),
            "llm_conf": {"init_param_path": str(self.language_model)},
            "model_path": str(self.path),
        }
        if "tokenizer" in conf:
            given["tokenizer_conf"] = {"init_param_path": str(self.language_model)}
        return merged({"model_conf": {}} | conf, given)


def find_model(model_dir: str | None, python: Path) -> ModelFolder:
    """The model directory at a path, or fetched by its hub id, of the revision that stands after @ there.

    ConfigError if none is named; InputError if it is not there, cannot be fetched, or lacks a file, which is named.
    """
    if not model_dir:
        raise ConfigError(
            f"funasr_nano.model_dir is not set; give the folder of a Fun-ASR-Nano, or the hub id {PUBLISHED}"
        )
    folder = Path(model_dir).absolute()
    if not folder.exists() and (hub := _HUB_ID.fullmatch(model_dir)):
        folder = _fetched(hub["id"], hub["revision"], python)
    return read_model(folder)


def read_model(folder: Path) -> ModelFolder:
    """Check a model directory and read what it says.

    InputError names all that it lacks, or what in it would run code of its own.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such model directory (funasr_nano.model_dir); give one that exists, or the hub id "
            f"{PUBLISHED}"
        )
    missing = [name for name in ("config.yaml", "configuration.json") if not (folder / name).is_file()]
    conf = {} if "config.yaml" in missing else read_conf(folder / "config.yaml")
    files = (
        {} if "configuration.json" in missing else read_json(folder / "configuration.json").get("file_path_metas", {})
    )
    weights = files.get("init_param", "model.pt")
    language_model = folder / (
        files.get("llm_conf", {}).get("init_param_path")
        or (conf.get("llm_conf") or {}).get("init_param_path")
        or _QWEN3
    )
    missing += [weights] if not (folder / weights).is_file() else []
    if not (language_model / "config.json").is_file():
        missing.append(f"{_below(language_model, folder)}/config.json")
    if not any((language_model / name).is_file() for name in _TOKENIZERS):
        missing.append(f"{_below(language_model, folder)}/tokenizer.json")
    if missing:
        raise InputError(
            f"{folder}: no whole Fun-ASR-Nano; it lacks {', '.join(missing)}. Get the model anew ({PUBLISHED}), or "
            "point funasr_nano.model_dir to a whole one"
        )
    if conf.get("model") != "FunASRNano":
        raise InputError(f"{folder}/config.yaml: model is {conf.get('model')!r}; expected FunASRNano")
    settings = {
        "config.yaml": conf,
        "configuration.json": files,
        f"{_below(language_model, folder)}/config.json": read_json(language_model / "config.json"),
    }
    for name, said in settings.items():
        if keys := list(foreign_code(said)):
            raise InputError(
                f"{folder}/{name}: {', '.join(keys)} would run code that comes with the model, or build another model; "
                f"Fun-ASR-Nano needs none of it. Remove the keys, or get the model anew ({PUBLISHED})"
            )
    return ModelFolder(folder, without_code_keys(conf), without_code_keys(files), language_model)


def write_model_files(model: ModelFolder, conf: Mapping[str, Any], weights: str, folder: Path) -> None:
    """Make `folder`, which holds `weights`, a model directory by itself: all of `model` but its weights.

    `conf` is laid over the model's configuration, and says where the language model's configuration and the tokenizer
    are if not in the model; paths are relative to the folder again.
    """
    parts = {}
    taken: dict[str, Path] = {}  # folders in `folder`, and what they are copies of
    for section in ("llm_conf", *(["tokenizer_conf"] if "tokenizer" in model.conf else [])):
        source = Path((conf.get(section) or {}).get("init_param_path") or model.language_model)
        name = source.name if taken.get(source.name, source) == source else f"{source.name}-{section}"
        if name not in taken:
            shutil.copytree(source, folder / name, ignore=_WEIGHTS, dirs_exist_ok=True)
        taken[name] = source
        parts[section] = {"init_param_path": name}
    for path in _files(model.files):
        if (model.path / path).is_file() and path not in ("config.yaml", model.files.get("init_param", "model.pt")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.path / path, folder / path)
    whole = without_code_keys(merged(merged(model.conf, conf), parts))
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, allow_unicode=True, sort_keys=False), encoding="utf-8")
    configuration = read_json(model.path / "configuration.json")
    files = merged(model.files, parts | {"init_param": weights, "config": "config.yaml"})
    write_json(folder / "configuration.json", without_code_keys(configuration) | {"file_path_metas": files})


def _fetched(hub_id: str, revision: str | None, python: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="earmark-model-") as scratch:
        result = Path(scratch, "folder")
        environment.run(python, "fetch", {"hub_id": hub_id, "revision": revision, "result": str(result)})
        return Path(result.read_text(encoding="utf-8"))


def _absolute(files: Any, folder: Path) -> Any:
    """The paths of file_path_metas that exist below `folder`, absolute."""
    if isinstance(files, str):
        return str(folder / files)
    if isinstance(files, list):
        return [_absolute(file, folder) for file in files]
    return {key: _absolute(value, folder) for key, value in files.items() if _exists(value, folder)}


def _exists(value: Any, folder: Path) -> bool:
    return not isinstance(value, str) or (folder / value).exists()


def _files(files: Any) -> list[str]:
    if isinstance(files, str):
        return [files]
    values = files.values() if isinstance(files, dict) else files
    return [path for value in values for path in _files(value)]


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
