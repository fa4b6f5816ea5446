"""The first part of the audio route with Whisper: raw speech in, the frozen encoder's frames out."""

from __future__ import annotations

import logging
from typing import Any, Self

import numpy as np
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.errors import ConfigError
from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.int8_product import Int8Product, can_multiply_integers
from earmark.retrieval.packed_whisper import Float32Product, PackedWhisper, can_be_packed, is_plain
from earmark.retrieval.whisper import encode_frames, frames_of, load_encoder, resolve_layer
from earmark.whisper import log_mel

log = logging.getLogger(__name__)


class WhisperFrames(FrozenEncoder):
    """Frames as wide as the encoder's states, each the mean of two; `layer` is how many of its layers are run.

    `precision` is that of its matrix products, "float32" or "int8" (see `int8_product`); it is not saved.
    """

    config_keys = ["encoder_config", "layer"]  # noqa: RUF012 (the base class's protocol)
    precision = "float32"

    def __init__(self, encoder_config: dict[str, Any], layer: int, encoder: WhisperEncoder | None = None):
        super().__init__(encoder if encoder is not None else WhisperEncoder(WhisperConfig(**encoder_config)))
        self.layer = layer
        self._packed: tuple[Any, PackedWhisper] | None = None  # and the weights that were packed
        self.name = f"{layer} of {self.encoder.config.encoder_layers} layers of Whisper's encoder"

    @classmethod
    def of(cls, encoder: WhisperEncoder, layer: int) -> Self:
        """Wrap a loaded encoder."""
        return cls({}, layer, encoder)

    @classmethod
    def pretrained(cls, source: str, seed: int, layer: int) -> Self:
        """As `whisper.load_encoder` and `whisper.resolve_layer` say."""
        encoder = load_encoder(source, seed)
        return cls.of(encoder, resolve_layer(layer, encoder.config.encoder_layers))

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        for clip in clips:
            self.check_clip(clip)
        return log_mel(self.extractor, clips)

    def encode_mel(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.precision == "int8":
            self._check_plain()
            mel = mel.to(self.encoder.device, torch.float32)
            with torch.autocast(mel.device.type, enabled=False):
                return frames_of(self._packed_encoder().states(mel, lengths), lengths)
        if can_be_packed(self.encoder):
            return frames_of(self._packed_encoder().states(mel.float(), lengths), lengths)
        self._packed = None
        return encode_frames(self.encoder, mel, lengths, self.layer)

    def set_precision(self, precision: str) -> None:
        """`precision`, from now on. ConfigError where the encoder cannot hear so."""
        if precision == "int8":
            self._check_plain()
            if not can_multiply_integers(self.encoder.device):
                log.warning("without AVX-512 VNNI, hearing in int8 is slower than in float32")
        self.precision = precision

    def _check_plain(self) -> None:
        if not is_plain(self.encoder):
            raise ConfigError(
                f"{self.name}: to hear in int8, its weights must be float32, without adapters, and not loaded in "
                "inference mode; set the precision to float32"
            )

    def _packed_encoder(self) -> PackedWhisper:
        # Packed anew when weights were written to, as when others are loaded; a write to `.data` is not seen.
        weights = [(id(weight), weight.data_ptr(), weight._version) for weight in self.encoder.parameters()]
        packed = self.layer, self.precision, weights
        if self._packed is None or self._packed[0] != packed:
            product = Int8Product if self.precision == "int8" else Float32Product
            self._packed = packed, PackedWhisper(self.encoder, self.layer, product)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which are nothing that can be pickled."""
        return {**self.__dict__, "_packed": None}
