"""FunASR's configuration as a training gets it: the tracked file, what is laid over it, and what must not be in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from earmark.errors import ConfigError
from earmark.files import read_text

CONF = Path("conf/train_funasr_nano.yaml")
# Keys of the configuration's section `funasr_nano` that are Earmark's own; all others are FunASR's.
OWN_KEYS = frozenset({"model_dir", "python", "conf", "transcribe_batch_size", "max_new_tokens"})
_NO_PARTIAL_SAVES = (None, "None")


def training_conf(section: Mapping[str, Any], *flags: Mapping[str, Any]) -> dict[str, Any]:
    """What is laid over the model's own configuration: the file `section.conf`, `section`'s FunASR keys, `flags`.

    Later ones win, key by key. A section's null leaves what the file says. ConfigError where values do not go together.
    """
    conf = read_conf(Path(section["conf"]))
    over = {name: value for name, value in section.items() if name not in OWN_KEYS and value is not None}
    for layer in (over, *flags):
        conf = merged(conf, layer)
    _check(conf)
    return conf


def read_conf(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. ConfigError if it is none."""
    try:
        conf = yaml.safe_load(read_text(path))
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
        conf[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: {value!r} is no YAML value") from None


def _check(conf: Mapping[str, Any]) -> None:
    """What FunASR would accept and then go wrong with."""
    for name, value in conf.items():
        if name.endswith("_conf") and not isinstance(value, Mapping):
            raise ConfigError(
                f"funasr_nano.{name} is {value!r}; expected keys below it, see conf/train_funasr_nano.yaml"
            )
    train_conf, llm_conf = conf.get("train_conf", {}), conf.get("llm_conf", {})
    if "lr" in conf.get("optim_conf", {}) and not isinstance(conf["optim_conf"]["lr"], int | float):
        raise ConfigError(f"optim_conf.lr is {conf['optim_conf']['lr']!r}, no number; YAML wants 2.0e-4 for 2e-4")
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
        path = conf.get(section, {}).get("init_param_path")
        if path is not None and not Path(path).is_absolute():
            raise ConfigError(
                f"{section}.init_param_path is {path!r}, a relative path, which FunASR would look up in the working "
                "directory and then on a model hub; give an absolute one, or leave it out: the model directory has one"
            )
    if train_conf.get("effective_save_name_excludes") not in _NO_PARTIAL_SAVES:
        raise ConfigError(
            "train_conf.effective_save_name_excludes would leave weights out of what is saved, and FunASR starts such "
            "a model with random ones in their place; set it to null"
        )
    for key in ("use_fsdp", "use_deepspeed"):
        if train_conf.get(key):
            raise ConfigError(f"train_conf.{key}: its checkpoints cannot be checked here; set it to false")
