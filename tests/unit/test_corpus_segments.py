import csv
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr
import yaml

from earmark import audio
from earmark.artifacts import CORPUS, iterate_rows, rejected_path, table_counts, write_table
from earmark.audio import SAMPLE_RATE, encode_flac, read_audio, read_spans
from earmark.corpus import segments
from earmark.corpus.segments import Checks, check_segments, dynamic_range_db
from earmark.corpus.sharding import MANIFEST
from earmark.errors import TooManyRejectedError


@pytest.fixture(scope="module")
def checks(repo):
    """The defaults."""
    return Checks(**yaml.safe_load((repo / "config.yaml").read_text(encoding="utf-8"))["corpus"]["checks"])


@pytest.fixture
def check(tmp_path, checks):
    """check([(segment_id, audio path, offset_s, duration_s), ...]): kept and rejected rows, both by segment id."""

    def check(rows, fraction=1.0, channel=None, audio_rows=None, **changed):
        table = [
            {
                "segment_id": segment_id,
                "recording_id": "r",
                "speaker_id": "s",
                "audio_path": str(path),
                "audio_row": audio_rows[number - 2] if audio_rows else None,
                "channel": channel,
                "offset_s": offset_s,
                "duration_s": duration_s,
                "text": "hello",
                "language": "en",
                "source": f"m.tsv:{number}",
            }
            for number, (segment_id, path, offset_s, duration_s) in enumerate(rows, start=2)
        ]
        write_table(tmp_path / "in.parquet", pa.Table.from_pylist(table, schema=MANIFEST))
        output = tmp_path / "out.parquet"
        check_segments(
            tmp_path / "in.parquet", output, Checks(**vars(checks) | changed), max_rejected_fraction=fraction
        )
        rejected = [json.loads(line) for line in rejected_path(output).read_text().splitlines()]
        return {row["segment_id"]: row for row in iterate_rows(output)}, {row["id"]: row for row in rejected}

    return check


def syllables(seconds, rate=SAMPLE_RATE, peak=0.5):
    """A voice of sorts: a buzz that comes and goes four times a second over a low noise."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 20))
    noise = np.random.default_rng(0).standard_normal(len(time)) / 500
    return peak * buzz / np.abs(buzz).max() * np.maximum(0, np.sin(2 * np.pi * 2 * time)) ** 2 + peak * noise


def test_a_segment_gets_its_true_duration(check, write_wav):
    path = write_wav("a.wav", samples=syllables(2.0))
    kept, rejected = check([("whole", path, 0.0, None), ("rounded", path, 1.0, 1.04), ("tail", path, 1.5, None)])
    assert {name: row["duration_s"] for name, row in kept.items()} == {"whole": 2.0, "rounded": 1.0, "tail": 0.5}
    assert rejected == {}
    assert set(kept["whole"]) == set(CORPUS.names)


def test_a_stated_duration_is_kept_to_the_last_digit(check, write_wav):
    path = write_wav("a.wav", samples=syllables(2.0, 44_100), rate=44_100)
    kept, _ = check([("s", path, 0.123456, 1.234567)])
    assert (kept["s"]["offset_s"], kept["s"]["duration_s"]) == (0.123456, 1.234567)


def test_stereo_at_44100_hz_is_kept_with_its_duration(check, write_wav):
    samples = syllables(1.0, 44_100)
    kept, _ = check([("s", write_wav("a.wav", samples=np.stack([samples, samples], 1), rate=44_100), 0.0, None)])
    assert kept["s"]["duration_s"] == 1.0


def test_segments_keep_their_order(check, write_wav):
    rows = [
        (f"{name}-{number}", write_wav(f"{name}.wav", samples=syllables(5.0)), float(number), 1.0)
        for name in "ba"
        for number in (0, 0, 1, 3, 7, 3)[:-1]
    ]
    kept, rejected = check(rows)
    assert list(rejected) == ["b-7", "a-7"]
    assert list(kept) == ["b-0", "b-1", "b-3", "a-0", "a-1", "a-3"]


def test_each_kind_of_bad_audio_is_rejected_with_its_reason_and_place(check, tmp_path, write_wav):
    good = write_wav("good.wav", samples=syllables(6.0))
    (tmp_path / "text.wav").write_text("this is text")
    broken = syllables(2.0)
    broken[-10] = np.nan
    not_finite = write_wav("nan.wav", samples=broken, subtype="FLOAT")
    infinite = np.where(np.isnan(broken), np.inf, broken)
    rows = [
        ("missing", tmp_path / "none.wav", 0.0, None),
        ("long_name", tmp_path / ("x" * 5000), 0.0, None),
        ("unreadable", tmp_path / "text.wav", 0.0, None),
        ("zero_length", write_wav("zero.wav", samples=np.zeros(0)), 0.0, None),
        ("clean_half_of_nan", not_finite, 0.0, 0.9),
        ("nan", not_finite, 0.9, None),
        ("nan_resampled", write_wav("nan44.wav", samples=broken, rate=44_100, subtype="FLOAT"), 0.0, None),
        ("infinite", write_wav("inf.wav", samples=infinite, subtype="FLOAT"), 0.0, None),
        ("silent", write_wav("silent.wav", samples=np.zeros(SAMPLE_RATE)), 0.0, None),
        ("faint", write_wav("faint.wav", samples=syllables(1.0, peak=0.0005), subtype="FLOAT"), 0.0, None),
        ("tone", write_wav("tone.wav"), 0.0, None),
        ("clipped", write_wav("clipped.wav", samples=np.clip(syllables(2.0, peak=3), -1, 1)), 0.0, None),
        ("telephone", write_wav("low.wav", samples=syllables(1.0, 6_000), rate=6_000), 0.0, None),
        ("array", write_wav("array.wav", samples=np.stack([syllables(1.0)] * 3, axis=1)), 0.0, None),
        ("short", good, 0.0, 0.1),
        ("good", good, 0.0, 5.0),
        ("long", good, 0.0, 5.5),
        ("beyond", good, 5.0, 1.2),
        ("far_beyond", good, 7.0, None),
    ]
    kept, rejected = check(rows, max_duration_s=5.0)
    assert sorted(kept) == ["clean_half_of_nan", "good"]
    assert {name: row["reason"] for name, row in rejected.items()} == {
        "missing": "missing_audio",
        "long_name": "missing_audio",
        "unreadable": "unreadable_audio",
        "zero_length": "unreadable_audio",
        "nan": "not_finite",
        "nan_resampled": "not_finite",
        "infinite": "not_finite",
        "silent": "silence",
        "faint": "silence",
        "tone": "low_dynamic_range",
        "clipped": "clipped",
        "telephone": "low_sample_rate",
        "array": "too_many_channels",
        "short": "too_short",
        "long": "too_long",
        "beyond": "outside_recording",
        "far_beyond": "outside_recording",
    }
    for number, (name, path, *_) in enumerate(rows, start=2):
        if name in rejected:
            assert rejected[name]["detail"].startswith(f"m.tsv:{number}: ")
            assert str(path) in rejected[name]["detail"]
    counts = table_counts(tmp_path / "out.parquet")
    assert (counts["input"], counts["kept"], counts["rejected"]) == (19, 2, 17)


def test_a_channel_is_checked_by_itself(check, write_wav):
    path = write_wav("a.wav", samples=np.stack([syllables(1.0), np.zeros(SAMPLE_RATE)], axis=1))
    for channel, reason in ((0, None), (1, "silence"), (2, "bad_channel")):
        kept, rejected = check([("s", path, 0.0, None)], channel=channel)
        assert [row["reason"] for row in rejected.values()] == ([reason] if reason else [])
        assert [row["channel"] for row in kept.values()] == ([] if reason else [channel])


def test_audio_packed_into_a_parquet_file_is_checked_row_by_row(check, tmp_path):
    packed = tmp_path / "train.parquet"
    clips = [{"bytes": encode_flac(samples), "path": None} for samples in (syllables(1.0), np.zeros(8000))]
    write_table(packed, pa.table({"audio": [*clips, {"bytes": b"no audio", "path": None}]}))
    rows = [(f"s{row}", packed, 0.0, None) for row in range(4)] + [("gone", tmp_path / "test.parquet", 0.0, None)]
    kept, rejected = check(rows, audio_rows=[0, 1, 2, 3, 0])
    assert {name: row["audio_row"] for name, row in kept.items()} == {"s0": 0}
    assert {name: row["reason"] for name, row in rejected.items()} == {
        "s1": "silence",
        "s2": "unreadable_audio",
        "s3": "unreadable_audio",
        "gone": "missing_audio",
    }
    assert f"{packed}, row 1" in rejected["s1"]["detail"]


def test_only_what_lies_before_the_damage_is_kept_of_a_damaged_recording(check, tmp_path):
    path = tmp_path / "x.flac"
    soundfile.write(path, syllables(20.0), SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    kept, rejected = check([(f"s{second}", path, float(second), 1.0) for second in range(20)])
    assert 7 <= len(kept) <= 10
    assert list(kept) == [f"s{second}" for second in range(len(kept))]
    assert {row["reason"] for row in rejected.values()} == {"unreadable_audio"}
    assert rejected["s19"]["detail"].startswith(f"m.tsv:21: {path}: cannot be read as audio")


def test_a_recording_that_breaks_off_before_its_header_says_rejects_what_is_not_whole(check, tmp_path):
    path = tmp_path / "x.mp3"
    soundfile.write(path, syllables(20.0), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kept, rejected = check([("early", path, 0.0, 5.0), ("across", path, 5.0, None), ("after", path, 15.0, 5.0)])
    assert list(kept) == ["early"]
    assert {name: row["reason"] for name, row in rejected.items()} == dict.fromkeys(
        ["across", "after"], "unreadable_audio"
    )
    assert "earlier than its header says" in rejected["across"]["detail"]


def test_a_recording_of_which_nothing_is_wanted_is_not_decoded(check, write_wav, monkeypatch):
    path = write_wav("a.wav", samples=syllables(2.0))
    monkeypatch.setattr(audio.Recording, "_frames", lambda self: pytest.fail("decoded"))
    _, rejected = check([("long", path, 0.0, None)], max_duration_s=1.0)
    assert rejected["long"]["reason"] == "too_long"


def test_too_many_rejected_segments_fail_the_shard(check, tmp_path, write_wav):
    good = write_wav("a.wav", samples=syllables(1.0))
    with pytest.raises(TooManyRejectedError, match=r"1 of 2 segments .* missing_audio \(1\)"):
        check([("a", good, 0.0, None), ("b", tmp_path / "none.wav", 0.0, None)], fraction=0.4)
    assert not (tmp_path / "out.parquet").exists()


def test_an_empty_shard_passes(check):
    assert check([], fraction=0.0) == ({}, {})


def noises(seconds):
    """What is no speech, by name."""
    draw = np.random.default_rng(1)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    white = draw.standard_normal(len(time))
    spectrum = np.fft.rfft(white) / np.sqrt(np.maximum(1, np.arange(len(time) // 2 + 1)))
    pink = np.fft.irfft(spectrum, len(time))
    notes = time // 0.5 % 5 * 2 / 12  # a new chord every half second
    click = np.zeros(len(time))
    click[len(time) // 2 : len(time) // 2 + 80] = 0.8
    return {
        "white noise": white / 10,
        "pink noise": pink / np.abs(pink).max(),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * time),
        "hum with harmonics": 0.2 * sum(np.sin(2 * np.pi * 50 * n * time) / n for n in range(1, 8)),
        "tone": 0.5 * np.sin(2 * np.pi * 1000 * time),
        "offset": np.full(len(time), 0.3),
        "chord": 0.2 * sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 277.2, 329.6)),
        "chords": 0.2 * sum(np.sin(2 * np.pi * pitch * time * 2**notes) for pitch in (220, 277.2, 329.6)),
        "silence with a click": click,
        "low noise with a click": click + white / 1000,
    }


@pytest.mark.parametrize("seconds", [0.6, 3, 40])
def test_noise_hum_tones_held_chords_and_clicks_are_rejected(check, write_wav, seconds):
    rows = [
        (name.replace(" ", "-"), write_wav(f"{name}.wav", samples=samples), 0.0, None)
        for name, samples in noises(seconds).items()
    ]
    kept, rejected = check(rows)
    assert not kept
    assert {row["reason"] for row in rejected.values()} == {"low_dynamic_range"}


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "ULAW", "ALAW", "VORBIS", "OPUS", "MPEG_LAYER_III"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_clipping_is_found_whatever_the_file_was_made_into(check, tmp_path, speech, rate, subtype):
    samples = soxr.resample(read_audio(speech / "audio/jfk.flac")[: 4 * SAMPLE_RATE], SAMPLE_RATE, rate)
    suffix = {"VORBIS": "ogg", "OPUS": "ogg", "MPEG_LAYER_III": "mp3"}.get(subtype, "wav")
    rows = []
    for name, gain in (("clipped", 2), ("loud", 1)):
        left = np.clip(gain * samples / np.abs(samples).max(), -1, 1)
        path = tmp_path / f"{name}.{suffix}"
        soundfile.write(path, np.stack([left, left / 3], axis=1), rate, subtype=subtype)
        rows.append((name, path, 0.0, None))
    kept, rejected = check(rows)
    assert list(kept) == ["loud"]
    assert rejected["clipped"]["reason"] == "clipped"


def test_no_voice_of_the_demo_and_no_real_utterance_is_rejected(check, demo, speech):
    rows = []
    for folder in (demo, speech):
        with (folder / "manifest.tsv").open(encoding="utf-8") as file:
            utterances = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            for audio_path, group in itertools.groupby(utterances, key=lambda row: row["audio"]):
                row = next(group)
                times = float(row.get("offset_s") or 0), float(row["duration_s"]) if row.get("duration_s") else None
                rows.append((row["segment_id"], folder / audio_path, *times))
    kept, rejected = check(rows)
    assert rejected == {}
    assert len(kept) == len(rows) > 80


def test_dynamic_range_is_the_distance_of_percentiles_of_frame_levels():
    draw = np.random.default_rng(0)
    for length in (1, 399, 400, 1000, 5000, 16_001):
        samples = (draw.standard_normal(length) * np.linspace(0.001, 0.5, length)).astype(np.float32)
        frame = min(length, 400)
        variances = samples[: length // frame * frame].reshape(-1, frame).astype(np.float64).var(axis=1)
        levels = np.maximum(10 * np.log10(np.maximum(variances, 1e-30)), segments.FLOOR_DB)
        loud, quiet = np.percentile(levels, [95, 10])
        assert dynamic_range_db(samples) == pytest.approx(loud - quiet, abs=1e-3)


def test_speech_between_digital_silence_has_a_finite_range():
    gated = np.concatenate([np.zeros(SAMPLE_RATE), syllables(1.0), np.zeros(SAMPLE_RATE)]).astype(np.float32)
    assert 40 < dynamic_range_db(gated) < 80
    assert dynamic_range_db(np.zeros(SAMPLE_RATE, np.float32)) == 0


def test_the_spans_checked_are_those_that_later_stages_read(check, write_wav, monkeypatch):
    path = write_wav("a.wav", samples=syllables(3.0, 22_050), rate=22_050)
    seen = []
    monkeypatch.setattr(segments, "dynamic_range_db", lambda samples: seen.append(samples.copy()) or 99.0)
    kept, _ = check([("a", path, 0.3, 1.1), ("b", path, 1.2, None)])
    spans = [(row["offset_s"], row["offset_s"] + row["duration_s"]) for row in kept.values()]
    for checked, read in zip(seen, read_spans(path, spans), strict=True):
        assert np.array_equal(checked, read)
