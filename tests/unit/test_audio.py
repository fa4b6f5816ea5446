import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark.audio import SAMPLE_RATE, audio_info, decode_audio, encode_flac, read_audio, slice_samples
from earmark.errors import AudioError


def test_stereo_at_44100_hz_is_averaged_and_resampled(write_wav):
    time = np.arange(44_100) / 44_100
    left = 0.4 * np.sin(2 * np.pi * 440 * time)
    path = write_wav("a.wav", samples=np.stack([left, np.zeros_like(left)], axis=1), rate=44_100)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.shape == (SAMPLE_RATE,)
    expected = 0.2 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert np.abs(samples - expected)[100:-100].max() < 2e-3
    info = audio_info(path)
    assert (info.sample_rate, info.channels, info.duration_s) == (44_100, 2, 1.0)


def test_16_khz_mono_is_read_bit_exactly(write_wav):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    assert np.array_equal(read_audio(write_wav("a.wav", samples=pcm)) * 32768, pcm)


def test_flac_gives_back_every_16_bit_sample():
    pcm = np.arange(-32768, 32768).astype(np.float32) / 32768
    assert np.array_equal(decode_audio(encode_flac(pcm)), pcm)


def test_samples_beyond_full_scale_are_clipped_not_wrapped():
    decoded = decode_audio(encode_flac(np.array([2.0, -2.0], dtype=np.float32)))
    assert decoded[0] > 0.999
    assert decoded[1] == -1.0


def test_slices_that_touch_neither_overlap_nor_leave_a_gap():
    samples = np.arange(SAMPLE_RATE)
    edges = [0.0, 0.1234567, 0.50001, 0.9]
    pieces = [slice_samples(samples, start, end) for start, end in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), samples[: round(0.9 * SAMPLE_RATE)])
    assert len(slice_samples(samples, -1.0, 99.0)) == SAMPLE_RATE
    assert len(slice_samples(samples, 0.5, 0.4)) == 0


def test_packed_audio_at_another_rate_is_refused():
    with pytest.raises(AudioError, match="8000 Hz"):
        decode_audio(encode_flac(np.zeros(800, dtype=np.float32), 8000))


def test_what_is_no_audio_says_which_file_and_why(tmp_path, write_wav):
    (tmp_path / "text.wav").write_text("not a wave")
    (tmp_path / "headerless.raw").write_bytes(b"\1\2" * 100)
    (tmp_path / "folder.wav").mkdir()
    lying = bytearray(encode_flac(np.zeros(100, dtype=np.float32)))
    lying[21:26] = bytes([lying[21] | 0x0F]) + b"\xff" * 4  # the header's sample count: 2^36 - 1
    (tmp_path / "lying.flac").write_bytes(lying)
    for name in ("text.wav", "headerless.raw", "folder.wav", "lying.flac"):
        with pytest.raises(AudioError, match=f"{name}: cannot be read as audio"):
            read_audio(tmp_path / name)
    for rate in (16_000, 44_100):
        with pytest.raises(AudioError, match=r"empty\.wav: holds no sample"):
            read_audio(write_wav("empty.wav", samples=np.zeros(0), rate=rate))
    for name in ("none.wav", "x" * 5000):
        with pytest.raises(AudioError, match="there is no such file"):
            read_audio(tmp_path / name)
        with pytest.raises(AudioError, match="there is no such file"):
            audio_info(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(container=st.sampled_from(["WAV", "FLAC", "OGG"]), data=st.data())
def test_damaged_files_are_read_or_refused_but_nothing_else(tmp_path, container, data):
    path = tmp_path / "x"
    soundfile.write(path, np.sin(np.arange(2000) / 9), SAMPLE_RATE, format=container)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        samples = read_audio(path)
    except AudioError as error:
        assert str(path) in str(error)
    else:
        assert samples.ndim == 1
        assert len(samples) > 0
