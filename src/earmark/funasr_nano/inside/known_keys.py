"""Which keys of its configuration the installed FunASR reads: from its signatures and its source.

FunASR passes sections on as keyword arguments and drops what nobody asks for, so a misspelt key does nothing. A key
counts as known if it is a parameter of a class that is given the section, or is asked for by `section.get("key")`,
`kwargs.get("key")` or `kwargs["key"]` where that class is defined.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from earmark.errors import ConfigError

# What Earmark says itself, or what its guards cannot vouch for.
_GIVEN = frozenset(
    {"model", "model_path", "model_conf", "init_param", "train_data_set_list", "valid_data_set_list", "output_dir",
     "device", "ngpu", "seed", "hub", "model_revision", "trust_remote_code", "remote_code", "vad_model", "punc_model",
     "spk_model", "debug", "fp16", "bf16", "input_size", "frontend", "tokenizer", "is_training", "ncpu",
     "vocab_size", "token_list", "batch_size", "excludes"}
)  # fmt: skip
_TRAINER_ARGUMENTS = frozenset(
    {"self", "rank", "local_rank", "world_size", "output_dir", "device", "excludes", "kwargs"}
)  # passed by FunASR's main, not by train_conf


def check_keys(conf: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """ConfigError that names every key of `conf` that FunASR would ignore, with the nearest that it knows.

    `conf`: what the user set, over the model's own configuration; `model`: both together, which says what classes read
    it.
    """
    problems = list(_unknown("", conf, known_keys(model)))
    if problems:
        import funasr

        raise ConfigError(
            f"FunASR {funasr.__version__} does not know "
            + "; nor ".join(problems)
            + ". See conf/train_funasr_nano.yaml"
        )


def known_keys(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of FunASR's configuration under the classes that `model` names: key -> known keys below it, or None."""
    from funasr.bin import train_ds
    from funasr.models.fun_asr_nano import model as nano
    from funasr.models.fun_asr_nano.ctc import CTC
    from funasr.optimizers import optim_classes
    from funasr.register import tables
    from funasr.schedulers import scheduler_classes
    from funasr.train_utils import trainer_ds

    optim, scheduler = model.get("optim", "adam"), model.get("scheduler", "warmuplr")
    data = model.get("dataset_conf") or {}
    sections: dict[str, Any] = {
        "train_conf": _flat(
            (_parameters(trainer_ds.Trainer) | _asked(trainer_ds, "kwargs", within="__init__")) - _TRAINER_ARGUMENTS
            | _asked_of_section(trainer_ds, "train_conf")
            | _asked_of_section(train_ds, "train_conf")
            | set(getattr(train_ds, "_DISTRIBUTED_TRAIN_CONF_KEYS", ()))
        ),
        "dataset_conf": _flat(
            _read_by(_named(tables.dataset_classes, model.get("dataset"), "dataset"))
            | _read_by(_named(tables.index_ds_classes, data.get("index_ds"), "dataset_conf.index_ds"))
            | _read_by(
                _named(
                    tables.batch_sampler_classes,
                    data.get("batch_sampler", "BatchSampler"),
                    "dataset_conf.batch_sampler",
                )
            )
            | _asked_of_section(importlib.import_module("funasr.datasets.dataloader_entry"), "dataset_conf")
            | _asked_of_section(train_ds, "dataset_conf")
            | _asked_of_section(nano, "dataset_conf")
            | {"preprocessor_speech_conf", "preprocessor_noise_conf", "prompt_conf"}
        ),
        "optim_conf": _flat(_parameters(_named(optim_classes, optim, "optim")) - {"params", "self"}),
        "scheduler_conf": _flat(_parameters(_named(scheduler_classes, scheduler, "scheduler")) - {"optimizer", "self"}),
        "llm_conf": _flat(_asked(nano, "llm_conf"))
        | {"lora_conf": _flat(_asked(nano, "lora_conf")), "load_kwargs": None},
        "audio_encoder_conf": _flat(
            _asked(nano, "audio_encoder_conf")
            | (
                _parameters(_named(tables.encoder_classes, model.get("audio_encoder"), "audio_encoder"))
                - {"input_size"}
            )
        ),
        "audio_adaptor_conf": _flat(
            _asked(nano, "audio_adaptor_conf")
            | _read_by(_named(tables.adaptor_classes, model.get("audio_adaptor"), "audio_adaptor"))
        ),
        "frontend_conf": _flat(_parameters(_named(tables.frontend_classes, model.get("frontend"), "frontend"))),
        "tokenizer_conf": _flat(_parameters(_named(tables.tokenizer_classes, model.get("tokenizer"), "tokenizer"))),
        "ctc_decoder_conf": _flat(
            _asked(nano, "ctc_decoder_conf")
            | (_read_by(tables.adaptor_classes[model["ctc_decoder"]]) if model.get("ctc_decoder") else set())
        ),
        "ctc_conf": _flat((_asked(nano, "ctc_conf") | _parameters(CTC)) - {"odim", "encoder_output_size"}),
    }
    top = _asked(train_ds, "kwargs") | _asked(trainer_ds, "kwargs", within="warp_optim_scheduler")
    top |= {"optim", "scheduler", "dataset", "lora_only", "lora_bias", "length_normalized_loss"}
    top |= _asked(importlib.import_module("funasr.auto.auto_model"), "kwargs", within="build_model")
    return {key: None for key in sorted(top - _GIVEN)} | sections


def _flat(keys: Iterable[str]) -> dict[str, Any]:
    return {key: None for key in sorted(set(keys) - {"kwargs", "self"})}


def _unknown(where: str, conf: Mapping[str, Any], known: Mapping[str, Any]) -> Iterable[str]:
    for key, value in conf.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            among = f"; there are {', '.join(sorted(known))}" if where and known else ""
            told = f"; did you mean '{where}{near[0]}'?" if near else among
            yield f"'{where}{key}'" + (" (Earmark sets it)" if not where and key in _GIVEN else told)
        elif known[key] is not None and isinstance(value, Mapping):
            yield from _unknown(f"{where}{key}.", value, known[key])


def _named(classes: Mapping[str, Any], name: Any, key: str) -> Any:
    found = classes.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"{key} is {name!r}; FunASR knows {', '.join(sorted(classes))}")
    return found


def _read_by(owner: Any) -> set[str]:
    """What a class or function, and what stands beside it in its module, takes out of its keyword arguments."""
    module = inspect.getmodule(owner)
    assert module is not None
    found = _parameters(owner) | _asked(module, "kwargs")
    for value in vars(
        module
    ).values():  # a sampler is chosen by a function that passes all keys on to a class beside it
        if not isinstance(owner, type) and isinstance(value, type) and value.__module__ == module.__name__:
            found |= _parameters(value)
    return found - {"path", "frontend", "tokenizer", "dataset", "is_training", "rank", "num_replicas", "start_step"}


def _parameters(owner: Callable[..., Any]) -> set[str]:
    kinds = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    return {name for name, parameter in inspect.signature(owner).parameters.items() if parameter.kind not in kinds}


@cache
def _source(module: ModuleType) -> ast.Module:
    return ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))


def _asked(module: ModuleType, name: str, *, within: str | None = None) -> set[str]:
    """Literals in `name.get("…")` and `name["…"]` in a module's source, or in its functions called `within`."""
    trees: list[ast.AST] = [_source(module)]
    if within is not None:
        trees = [node for node in ast.walk(trees[0]) if isinstance(node, ast.FunctionDef) and node.name == within]
    return {
        key
        for tree in trees
        for node in ast.walk(tree)
        for owner, key in _lookups(node)
        if isinstance(owner, ast.Name) and owner.id == name
    }


def _asked_of_section(module: ModuleType, section: str) -> set[str]:
    """Literals in `….get("section", …).get("…")` and `…["section"].get("…")` in a module's source."""
    return {
        key
        for node in ast.walk(_source(module))
        for owner, key in _lookups(node)
        if any(inner_key == section for inner in (owner,) for _, inner_key in _lookups(inner))
    }


def _lookups(node: ast.AST) -> Iterable[tuple[ast.expr, str]]:
    """(what is asked, the literal key), where the node is such a look-up."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        asked, key = node.func.value, node.args[0]
    elif isinstance(node, ast.Subscript):
        asked, key = node.value, node.slice
    else:
        return
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        yield asked, key.value
