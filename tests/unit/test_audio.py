import itertools
import os

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earmark import audio
from earmark.audio import (
    SAMPLE_RATE,
    AudioSource,
    Recording,
    audio_info,
    decode_audio,
    encode_flac,
    read_audio,
    read_spans,
)
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


def test_packed_audio_at_another_rate_is_refused():
    with pytest.raises(AudioError, match="8000 Hz"):
        decode_audio(encode_flac(np.zeros(800, dtype=np.float32), 8000))


def test_what_is_no_audio_says_which_file_and_why(tmp_path, write_wav):
    (tmp_path / "text.wav").write_text("not a wave")
    (tmp_path / "headerless.raw").write_bytes(b"\1\2" * 100)
    (tmp_path / "folder.wav").mkdir()
    for name in ("text.wav", "headerless.raw", "folder.wav"):
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


NOISE = np.random.default_rng(0).standard_normal((5 * 44_100 + 123, 2)).astype(np.float32) / 10


@pytest.fixture(params=["16 kHz mono", "44.1 kHz stereo", "its second channel", "11.025 kHz", "Ogg Opus"])
def recording(request, tmp_path):
    """A source of some seconds, and the samples that reading and resampling it in one go gives."""
    rate, frames, channel, name = {
        "16 kHz mono": (16_000, NOISE[:, 0], None, "x.wav"),
        "44.1 kHz stereo": (44_100, NOISE, None, "x.wav"),
        "its second channel": (44_100, NOISE, 1, "x.flac"),
        "11.025 kHz": (11_025, NOISE[:, 0], 0, "x.wav"),
        "Ogg Opus": (48_000, NOISE, None, "x.ogg"),
    }[request.param]
    path = tmp_path / name
    soundfile.write(path, frames, rate, subtype={"x.wav": "FLOAT", "x.flac": "PCM_16", "x.ogg": "OPUS"}[name])
    frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = frames.mean(axis=1) if channel is None else np.ascontiguousarray(frames[:, channel])
    return AudioSource(path, channel=channel), soxr.resample(mono, rate, SAMPLE_RATE)


def test_a_recording_read_in_blocks_is_the_one_read_at_once(recording):
    source, samples = recording
    assert len(samples) > 3 * SAMPLE_RATE
    assert np.array_equal(read_audio(source), samples)
    assert audio_info(source).duration_s == pytest.approx(len(samples) / SAMPLE_RATE, abs=1e-4)


def test_spans_hold_the_samples_of_their_times_across_blocks_gaps_and_overlaps(recording):
    source, samples = recording
    spans = [(-1.0, 0.5), (0.25, 2.75), (0.25, 0.3), (0.3, 0.3), (3.0001, 3.1), (3.1, 3.4), (3.2, 99.0), (99.0, 100.0)]
    read = list(read_spans(source, spans))
    assert [len(span) for span in read[:6]] == [8000, 40_000, 800, 0, 1598, 4800]
    for (start_s, end_s), span in zip(spans, read, strict=True):
        assert np.array_equal(span, samples[max(0, round(start_s * SAMPLE_RATE)) : round(end_s * SAMPLE_RATE)])
        assert span.dtype == np.float32


def test_spans_that_touch_neither_overlap_nor_leave_a_gap(recording):
    source, samples = recording
    edges = [0.0, 0.1234567, 0.50001, 0.9, 1.0, 2.3456789]
    pieces = list(read_spans(source, itertools.pairwise(edges)))
    assert np.array_equal(np.concatenate(pieces), samples[: round(edges[-1] * SAMPLE_RATE)])


def test_a_span_in_the_middle_decodes_no_more_than_it_needs(write_wav, monkeypatch):
    path = write_wav("a.wav", seconds=9.0)
    blocks = []
    monkeypatch.setattr(
        Recording, "_frames", lambda self, real=Recording._frames: (blocks.append(b) or b for b in real(self))
    )
    next(read_spans(AudioSource(path), [(1.5, 2.5)]))
    assert sum(map(len, blocks)) == 3 * SAMPLE_RATE


def test_spans_out_of_order_are_a_defect_of_the_caller(write_wav):
    with pytest.raises(ValueError, match=r"span at 0\.1 s comes after one that starts later"):
        list(read_spans(AudioSource(write_wav("a.wav")), [(0.5, 0.6), (0.1, 0.2)]))


def test_a_channel_that_is_not_there_is_refused(write_wav):
    with pytest.raises(AudioError, match=r"has 2 channels, numbered from 0; there is no 2"):
        read_audio(AudioSource(write_wav("a.wav", channels=2), channel=2))


def test_what_comes_before_the_damage_in_a_flac_file_is_read(tmp_path):
    content = bytearray(encode_flac(np.tile(NOISE[: 5 * SAMPLE_RATE, 0], 4)))
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "x.flac").write_bytes(content)
    spans = read_spans(AudioSource(tmp_path / "x.flac"), [(second, second + 1) for second in range(20)])
    for second in range(8):
        assert len(next(spans)) == SAMPLE_RATE, second
    with pytest.raises(AudioError, match=r"x\.flac: cannot be read as audio"):
        list(spans)


def test_a_header_that_claims_more_than_there_is_gives_shorter_spans(tmp_path):
    path = tmp_path / "x.mp3"
    soundfile.write(path, np.tile(NOISE[:48_000, 0], 10), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert audio_info(path).duration_s == 30.0
    spans = list(read_spans(AudioSource(path), [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]))
    assert len(spans[0]) == 10 * SAMPLE_RATE
    assert 0 < len(spans[1]) < 6 * SAMPLE_RATE
    assert len(spans[2]) == 0


def test_a_flac_header_that_claims_days_costs_no_memory(tmp_path):
    lying = bytearray(encode_flac(NOISE[:100, 0]))
    lying[21:26] = bytes([lying[21] | 0x0F]) + b"\xff" * 4  # the header's sample count: 2^36 - 1
    (tmp_path / "x.flac").write_bytes(lying)
    assert audio_info(tmp_path / "x.flac").duration_s > 48 * 24 * 3600
    assert len(read_audio(tmp_path / "x.flac")) == 100


def test_a_flac_file_that_states_no_length_is_measured(tmp_path):
    content = bytearray(encode_flac(NOISE[:, 0]))
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    (tmp_path / "x.flac").write_bytes(content)
    assert audio_info(tmp_path / "x.flac").duration_s == len(NOISE) / SAMPLE_RATE
    assert np.array_equal(read_audio(tmp_path / "x.flac"), decode_audio(encode_flac(NOISE[:, 0])))


def test_a_sample_rate_that_nobody_records_at_is_refused(write_wav):
    with pytest.raises(AudioError, match="sample rate of 7 Hz"):
        audio_info(write_wav("a.wav", rate=7, samples=NOISE[:, 0]))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "PCM_U8", "ULAW", "ALAW"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clipped_frames_are_counted_in_the_file_itself_before_channels_are_mixed(write_wav, rate, subtype):
    time = np.arange(rate) / rate
    left = np.clip(np.where(time < 0.5, 0.9, 4.0) * np.sin(2 * np.pi * 200 * time), -1, 1)
    path = write_wav("a.wav", samples=np.stack([left, left / 4], axis=1), rate=rate, subtype=subtype)

    def clipped(channel):
        with Recording(AudioSource(path, channel=channel)) as recording:
            return [share for _, share in recording.spans([(0.0, 0.5), (0.0, 1.0), (0.5, 1.0), (0.9, 2.0)])]

    loud = 1 - 2 * np.arcsin(0.25) / np.pi  # the part of a period in which the sine is beyond full scale
    for channel in (None, 0):
        assert clipped(channel) == pytest.approx([0, loud / 2, loud, loud], abs=0.02)
    assert clipped(1) == [0, 0, 0, 0]
    assert np.abs(read_audio(path)).max() < audio.CLIPPED_FROM


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


def test_what_is_clipped_before_a_span_does_not_count_against_it(write_wav):
    random = np.random.default_rng(0)
    samples = np.concatenate([np.sign(random.normal(size=160_000)), 0.3 * np.sin(np.arange(80_000) / 9)])
    with Recording(write_wav("a.wav", samples=samples)) as recording:
        shares = [clipped for _, clipped in recording.spans([(0.0, 1.0), (9.5, 10.5), (10.2, 15.0)])]
    assert shares == [1.0, pytest.approx(0.5, abs=0.01), 0.0]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="no regular file"):
        read_audio(tmp_path / "a.wav")
