"""An encoder's matrix products of 8-bit integers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.errors import ConfigError
from earmark.retrieval import int8_product, whisper_frames
from earmark.retrieval.int8_product import Int8Product, can_multiply_integers
from earmark.retrieval.whisper_frames import WhisperFrames

WEIGHT = torch.randn(48, 70, generator=torch.Generator().manual_seed(0))
BIAS = torch.linspace(-1, 1, 48)


@pytest.fixture(params=["integers", "floats"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How whole numbers are multiplied: as this processor does it, and as all can."""
    if request.param == "floats":
        monkeypatch.setattr(int8_product, "can_multiply_integers", lambda device: False)
    elif not can_multiply_integers(torch.device("cpu")):
        pytest.skip("this processor has no AVX-512 VNNI")


def rows(*shape: int, after_gelu: bool) -> torch.Tensor:
    # Of very different loudness: each row has its own scale.
    loudness = torch.logspace(-3, 3, shape[-2])[:, None]
    x = loudness * torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.gelu(x) if after_gelu else x


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("after_gelu", [False, True])
def test_a_product_is_that_of_the_rounded_numbers(after_gelu):
    x = rows(2, 9, 70, after_gelu=after_gelu).double()
    step = WEIGHT.double().abs().amax(dim=1, keepdim=True) / 127
    weight = step * (WEIGHT.double() / step).round()
    if after_gelu:
        step = (x.abs().amax(dim=-1, keepdim=True) + 0.17) / 255
        rounded = step * ((x + 0.17) / step).round() - 0.17
    else:
        step = x.abs().amax(dim=-1, keepdim=True) / 127
        rounded = step * (x / step).round()
    got = Int8Product(WEIGHT, BIAS, after_gelu=after_gelu)(x.float())
    assert torch.allclose(got.double(), rounded @ weight.T + BIAS, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_it_is_near_the_exact_product_and_adds_what_else_there_is():
    x = rows(2, 9, 70, after_gelu=False)
    exact = torch.nn.functional.linear(x, WEIGHT, BIAS)
    for got, wanted in (
        (Int8Product(WEIGHT, BIAS)(x), exact),
        (Int8Product(WEIGHT, None)(x), exact - BIAS),
        (Int8Product(WEIGHT, BIAS, "gelu")(x), torch.nn.functional.gelu(exact)),
        (Int8Product(WEIGHT, BIAS)(x, exact), 2 * exact),
    ):
        # Row by row, as each has its own loudness.
        error = (got - wanted).norm(dim=-1) / (wanted.norm(dim=-1) + 1e-2)
        assert 0 < error.max() < 0.02


@pytest.mark.usefixtures("way")
def test_a_row_of_zeros_and_one_that_is_no_number_give_what_they_are():
    x = rows(1, 5, 70, after_gelu=False)
    x[0, 1], x[0, 2, 5], x[0, 3, 7], x[0, 4, 8] = 0, torch.nan, torch.inf, -torch.nan
    for after_gelu in (False, True):
        got = Int8Product(WEIGHT, BIAS, after_gelu=after_gelu)(x)[0]
        assert torch.allclose(got[1], BIAS, atol=0.02)
        assert got[2].isnan().all() and got[4].isnan().all() and not got[3].isfinite().any()
        assert got[0].isfinite().all()


def test_both_ways_round_alike():
    x = rows(3, 50, 384, after_gelu=True)
    for after_gelu in (False, True):
        product = Int8Product(torch.zeros(8, 384), None, after_gelu=after_gelu)
        for one, other in zip(product._rounded(x), product._compiled_rounded(x), strict=True):
            assert torch.equal(one, other)


@pytest.mark.usefixtures("way")
def test_frames_of_8_bits_are_near_those_of_floats_alone_and_in_a_batch():
    torch.manual_seed(0)
    shape = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
    encoder = WhisperEncoder(WhisperConfig(**shape)).eval()
    random = np.random.default_rng(0)
    clips = [0.1 * random.standard_normal(count).astype(np.float32) for count in (16_000, 9_999, 700)]
    model = WhisperFrames.of(encoder, 2)
    exact = model.encode(clips)
    model.set_precision("int8")
    together = model.encode(clips)
    for clip, frames, float_frames in zip(clips, together, exact, strict=True):
        assert 0 < np.linalg.norm(frames - float_frames) / np.linalg.norm(float_frames) < 0.05
        # What is rounded may fall the other way after another order of additions.
        assert np.linalg.norm(frames - model.encode([clip])[0]) / np.linalg.norm(frames) < 0.05
    heard = model.preprocess(clips)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(dict(heard))["frames"][0], torch.from_numpy(together[0]))
    again = copy.deepcopy(model)
    assert np.array_equal(again.encode(clips)[0], together[0])
    again.load_state_dict({name: 1.1 * weight for name, weight in model.state_dict().items()})
    assert not np.array_equal(again.encode(clips)[0], together[0])
    model.set_precision("float32")
    assert all(np.array_equal(one, other) for one, other in zip(model.encode(clips), exact, strict=True))


def test_an_encoder_that_is_more_than_its_weights_say_is_refused_whenever_it_became_so():
    torch.manual_seed(0)
    shape = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    clip = np.full(16_000, 0.1, np.float32)
    for change in (
        lambda encoder: inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), encoder),
        lambda encoder: encoder.to(torch.bfloat16),
    ):
        model = WhisperFrames.of(WhisperEncoder(WhisperConfig(**shape)), 1)
        model.set_precision("int8")
        change(model.encoder)
        model.encoder.eval()
        with pytest.raises(ConfigError, match="weights must be float32, without adapters"):
            model.encode([clip])
        model.set_precision("float32")
        assert model.precision == "float32"
        with pytest.raises(ConfigError, match="weights must be float32, without adapters"):
            model.set_precision("int8")


def test_a_processor_that_multiplies_floats_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr(whisper_frames, "can_multiply_integers", lambda device: False)
    shape = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    WhisperFrames.of(WhisperEncoder(WhisperConfig(**shape)), 1).set_precision("int8")
    assert "slower than in float32" in caplog.text
