"""Whisper weights out of a CTranslate2 `model.bin`, without CTranslate2.

The format (CTranslate2, `python/ctranslate2/specs/model_spec.py`, `ModelSpec._serialize`), little-endian:

    u32 binary version (6) | string spec name | u32 spec revision | u32 number of variables
    each variable: string name | u8 rank | u32 dim * rank | u8 type | u32 bytes | data
    u32 number of aliases; each alias: string name | string variable

where a string is a u16 length, then that many bytes, the last of which is NUL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import WhisperConfig, WhisperModel

from earmark.errors import InputError

_BINARY_VERSION = 6
_SPEC = "WhisperSpec"
_TYPES: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
# Settings of CTranslate2's own runtime: they hold no weight. All others must be used, or the file is refused.
_RUNTIME_SETTINGS = frozenset(
    {
        "decoder/activation",
        "decoder/alibi",
        "decoder/alignment_heads",
        "decoder/alignment_layer",
        "decoder/num_heads",
        "decoder/pre_norm",
        "decoder/scale_embeddings",
        "decoder/start_from_zero_embedding",
        "encoder/num_heads",
    }
)


def load_whisper(path: Path) -> WhisperModel:
    """Build `transformers`' WhisperModel (encoder and decoder, float32, evaluation mode) from a `model.bin`.

    InputError if the file is no Whisper model of binary version 6, breaks off, is quantised, or if one weight is
    missing, left over or of another shape than the architecture says.
    """
    variables = read_variables(path)
    try:
        config = _whisper_config(variables)
        state = dict(_whisper_state(variables))
    except KeyError as error:
        raise InputError(f"{path}: the weight {error} is missing; the file is not a whole Whisper model") from None
    if variables:
        raise InputError(f"{path}: weights nobody asked for: {', '.join(sorted(variables)[:5])}; not a Whisper model")
    model = WhisperModel(config)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    return model.eval()


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 Whisper `model.bin`, by name; aliases are left out (they name the same data)."""
    try:
        with path.open("rb") as file:
            return dict(_iterate_variables(file))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); reinstall the package it belongs to") from None
    except (struct.error, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a CTranslate2 Whisper model ({error})") from None


def _iterate_variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    version, spec, revision = _unpack(file, "<I"), _string(file), _unpack(file, "<I")
    if version != _BINARY_VERSION or spec != _SPEC:
        raise ValueError(f"binary version {version}, {spec} revision {revision}; known: {_BINARY_VERSION}, {_SPEC}")
    for _ in range(_unpack(file, "<I")):
        name, rank = _string(file), _unpack(file, "<B")
        shape = [_unpack(file, "<I") for _ in range(rank)]
        dtype = _TYPES[_unpack(file, "<B")]
        data = _read(file, _unpack(file, "<I"))
        yield name, np.frombuffer(data, dtype).reshape(shape)


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"the file ends {size - len(data)} bytes early")
    return data


def _unpack(file: BinaryIO, layout: str) -> int:
    return struct.unpack(layout, _read(file, struct.calcsize(layout)))[0]


def _string(file: BinaryIO) -> str:
    return _read(file, _unpack(file, "<H")).removesuffix(b"\0").decode("utf-8")


def _whisper_config(variables: dict[str, np.ndarray]) -> WhisperConfig:
    """The architecture, read off the shapes."""
    d_model, mel_bins, _ = variables["encoder/conv1/weight"].shape
    vocabulary, _ = variables["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mel_bins,
        d_model=d_model,
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        # English-only Whisper starts and ends its transcript, and pads, with <|endoftext|>.
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
        decoder_start_token_id=50257,
    )


def _layers(variables: dict[str, np.ndarray], side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and "/ffn/" in name})


def _whisper_state(variables: dict[str, np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    """Take every variable out of `variables` and yield it under `transformers`' name."""
    for setting in _RUNTIME_SETTINGS:
        variables.pop(setting)

    def take(name: str) -> torch.Tensor:
        array = variables.pop(name)
        if array.dtype.kind != "f":
            raise InputError(f"{name} is quantised ({array.dtype}); use the float16 or float32 model")
        return torch.from_numpy(array.astype(np.float32))

    def norm(source: str, target: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{target}.weight", take(f"{source}/gamma")
        yield f"{target}.bias", take(f"{source}/beta")

    def linear(source: str, *targets: str) -> Iterator[tuple[str, torch.Tensor]]:
        # CTranslate2 stacks projections of the same input; Whisper's key projection has no bias, stacked as zeros.
        weights = take(f"{source}/weight").chunk(len(targets))
        biases = take(f"{source}/bias").chunk(len(targets))
        for target, weight, bias in zip(targets, weights, biases, strict=True):
            yield f"{target}.weight", weight.clone()
            if not target.endswith("k_proj"):
                yield f"{target}.bias", bias.clone()
            elif bias.any():
                raise InputError(f"{source}/bias: the key projection has a bias, which no Whisper model has")

    for conv in ("conv1", "conv2"):
        yield f"encoder.{conv}.weight", take(f"encoder/{conv}/weight")
        yield f"encoder.{conv}.bias", take(f"encoder/{conv}/bias")
    yield "decoder.embed_tokens.weight", take("decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        layers = _layers(variables, side)
        yield f"{side}.embed_positions.weight", take(f"{side}/position_encodings/encodings")
        yield from norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for index in range(layers):
            source, target = f"{side}/layer_{index}", f"{side}.layers.{index}"
            projections = [f"{target}.self_attn.{name}_proj" for name in ("q", "k", "v")]
            yield from norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            yield from linear(f"{source}/self_attention/linear_0", *projections)
            yield from linear(f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj")
            if side == "decoder":
                cross = f"{target}.encoder_attn"
                yield from norm(f"{source}/attention/layer_norm", f"{cross}_layer_norm")
                yield from linear(f"{source}/attention/linear_0", f"{cross}.q_proj")
                yield from linear(f"{source}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                yield from linear(f"{source}/attention/linear_2", f"{cross}.out_proj")
            yield from norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            yield from linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            yield from linear(f"{source}/ffn/linear_1", f"{target}.fc2")
