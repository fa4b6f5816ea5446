"""Loading a language model in 4 or 8 bit, where bitsandbytes and a GPU are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from transformers import BitsAndBytesConfig

from earmark.errors import ConfigError
from earmark.speech_llm.settings import ModelSettings


def quantisation(settings: ModelSettings, dtype: torch.dtype, kept: Sequence[str] = ()) -> BitsAndBytesConfig:
    """What load_in_4bit or load_in_8bit asks for; modules named in `kept` stay as they are.

    ConfigError without bitsandbytes or a GPU.
    """
    flag = "load_in_4bit" if settings.load_in_4bit else "load_in_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{flag} needs the package bitsandbytes, which is not installed; pip install bitsandbytes")
    if not torch.cuda.is_available():
        raise ConfigError(f"{flag} needs a CUDA GPU, and there is none here; leave the flag out, or run on a GPU")
    return BitsAndBytesConfig(
        load_in_4bit=settings.load_in_4bit,
        load_in_8bit=settings.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(kept) or None,
    )
