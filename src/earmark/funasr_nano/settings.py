"""FunASR's configuration as a training gets it: the tracked file, what is laid over it, and what must not be in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from earmark.errors import ConfigError
from earmark.files import read_text

CONF = Path("conf/train_funasr_nano.yaml")
# Keys of the configuration's section `funasr_nano` that are Earmark's own; all others are FunASR's.
OWN_KEYS = frozenset({"model_dir", "python", "conf", "transcribe_batch_size", "max_new_tokens"})
_NO_PARTIAL_SAVES = (None, "None")
_OTHER_MODELS = ("vad_model", "punc_model", "spk_model")  # FunASR fetches and builds them as well


class _Numbers(yaml.SafeLoader):
    """Reads 1e-4 as a number, as FunASR's own reader does; YAML 1.1 wants 1.0e-4."""


_Numbers.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def training_conf(section: Mapping[str, Any], *flags: Mapping[str, Any]) -> dict[str, Any]:
    """What is laid over the model's own configuration: the file `section.conf`, `section`'s FunASR keys, `flags`.

    Later ones win, key by key. A section's null leaves what the file says. ConfigError where values do not go together.
    """
    conf = read_conf(Path(section["conf"]))
    over = {name: value for name, value in section.items() if name not in OWN_KEYS and value is not None}
    for layer in (over, *flags):
        conf = merged(conf, layer)
    _check_given(conf)
    check_conf(conf)
    return conf


def read_conf(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. ConfigError if it is none."""
    try:
        conf = yaml.load(read_text(path), Loader=_Numbers)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(conf, dict):
        raise ConfigError(f"{path}: holds no keys; see conf/train_funasr_nano.yaml")
    return conf


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`, mapping by mapping."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def set_key(conf: dict[str, Any], assignment: str) -> None:
    """Set `section.key=value` in `conf`; the value is read as YAML. ConfigError if it is no assignment."""
    name, equals, value = assignment.partition("=")
    *path, last = name.strip().split(".")
    if not equals or not all([*path, last]):
        raise ConfigError(f"--set {assignment}: expected section.key=value, for instance train_conf.grad_clip=1")
    for part in path:
        conf = conf.setdefault(part, {})
        if not isinstance(conf, dict):
            raise ConfigError(f"--set {assignment}: {part} has a value already, and no keys below it")
    try:
        conf[last] = yaml.load(value, Loader=_Numbers)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: {value!r} is no YAML value") from None


def foreign_code(value: Any, where: str = "") -> Iterator[str]:
    """Keys, at any depth of a configuration, by which FunASR or transformers would run a model's own code.

    Those below other models, too, which FunASR would fetch and believe what they say of themselves.
    """
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from foreign_code(item, f"{where}{number}.")
    if not isinstance(value, Mapping):
        return
    for key, below in value.items():
        if (
            (key in ("trust_remote_code", "remote_code", *_OTHER_MODELS) and below)
            or (key == "attn_implementation" and "/" in str(below))  # a kernel of the hub
            or (key == "hub" and below == "ms" and where == "audio_encoder_conf.")  # an encoder of the hub
        ):
            yield f"{where}{key}"
        yield from foreign_code(below, f"{where}{key}.")


def without_code_keys(value: Any) -> Any:
    """A configuration without the keys, at any depth, that speak of a model's own code."""
    if isinstance(value, Mapping):
        kept = (key for key in value if key not in ("trust_remote_code", "remote_code"))
        return {key: without_code_keys(value[key]) for key in kept}
    return [without_code_keys(item) for item in value] if isinstance(value, list) else value


def check_no_foreign_code(conf: Any) -> None:
    """ConfigError if a model's own code would run under `conf`."""
    if keys := list(foreign_code(conf)):
        raise ConfigError(
            f"{', '.join(keys)}: would run code that comes with a model, or build another model; Fun-ASR-Nano needs "
            "none of it. Remove the keys, or get a model without them"
        )


def _check_given(conf: Mapping[str, Any]) -> None:
    """What FunASR would read otherwise than it was meant, or not at all, where the user gave it."""
    for name, value in conf.items():
        if name.endswith("_conf") and not isinstance(value, Mapping):
            raise ConfigError(
                f"funasr_nano.{name} is {value!r}; expected keys below it, see conf/train_funasr_nano.yaml"
            )
        if name.endswith("_conf"):
            for key, text in _numbers_as_text(name, value):
                raise ConfigError(
                    f"{key} is {text!r}, a text and no number; write it without quotes, and for YAML 1.0e-4 for 1e-4"
                )
    if conf.get("train_conf", {}).get("use_ddp") is not None:
        raise ConfigError(
            "train_conf.use_ddp is ignored by FunASR; leave it out: train.processes (--processes) says in how many "
            "processes to train"
        )
    if conf.get("ctc_decoder_conf", {}).get("freeze") is False:
        raise ConfigError(
            "ctc_decoder_conf.freeze is false, but the CTC decoder takes no part in this training; leave the key out"
        )


def _numbers_as_text(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers_as_text(f"{where}.{key}", below)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers_as_text(f"{where}.{number}", item)
    elif isinstance(value, str) and any(map(str.isdigit, value)):
        try:
            float(value)
        except ValueError:
            return
        yield where, value


def check_conf(conf: Mapping[str, Any]) -> None:
    """ConfigError about what FunASR would accept and then go wrong with, be it given or the model's own."""
    check_no_foreign_code(conf)
    train_conf, llm_conf = conf.get("train_conf") or {}, conf.get("llm_conf") or {}
    dtype = llm_conf.get("llm_dtype", "fp32")
    if dtype not in ("fp32", "bf16", "fp16"):
        raise ConfigError(f"llm_conf.llm_dtype is {dtype!r}; expected fp32, bf16 or fp16")
    if llm_conf.get("use_lora") and (dtype == "fp16" or train_conf.get("use_fp16")):
        raise ConfigError(
            f"{'llm_conf.llm_dtype is fp16' if dtype == 'fp16' else 'train_conf.use_fp16 is true'} with LoRA: AdamW's "
            "epsilon of 1e-8 is zero in float16 and lora_A has no gradient in the first step, so its weights become "
            "NaN in the second. Set llm_conf.llm_dtype to bf16 or fp32 and train_conf.use_fp16 to false"
        )
    if conf.get("lora_only") and not llm_conf.get("use_lora"):
        raise ConfigError("lora_only is true without llm_conf.use_lora: nothing would train; set lora_only to false")
    for section in ("llm_conf", "tokenizer_conf", "ctc_decoder_conf"):
        path = (conf.get(section) or {}).get("init_param_path")
        if path is not None and not Path(path).is_absolute():
            raise ConfigError(
                f"{section}.init_param_path is {path!r}, a relative path, which FunASR would look up in the working "
                "directory and then on a model hub; give an absolute one, or leave it out: the model directory has one"
            )
        if section != "ctc_decoder_conf" and path is not None and not Path(path, "config.json").is_file():
            raise ConfigError(f"{section}.init_param_path is {path}, which holds no config.json; give a model's folder")
    if train_conf.get("effective_save_name_excludes") not in _NO_PARTIAL_SAVES:
        raise ConfigError(
            "train_conf.effective_save_name_excludes would leave weights out of what is saved, and FunASR starts such "
            "a model with random ones in their place; set it to null"
        )
    for where, keys in (("", conf), ("train_conf.", train_conf)):
        for key in ("use_fsdp", "use_deepspeed"):
            if keys.get(key):
                raise ConfigError(f"{where}{key}: its checkpoints cannot be checked here; set it to false")
    for key in ("fp16", "bf16", "excludes"):
        if conf.get(key):
            raise ConfigError(
                f"{key}: FunASR would {'leave weights out' if key == 'excludes' else 'round all weights'} when it "
                "loads the model; remove the key from the model's config.yaml"
            )
    if train_conf.get("wandb_token"):
        raise ConfigError(
            "train_conf.wandb_token would be written into train_config.yaml and config.yaml, for all to read; leave it "
            "out, and set WANDB_API_KEY in the environment"
        )
