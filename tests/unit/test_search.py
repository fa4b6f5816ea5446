"""Searching recordings: windows, merging, and a run whose model hears each letter as a tone."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import earmark
from earmark import cli
from earmark.artifacts import write_json
from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError, ConfigError, InputError
from earmark.retrieval.audio_head import AudioHead
from earmark.retrieval.index import build_index, index_surfaces, write_index
from earmark.retrieval.model import alignment_retriever, hear, load_retriever, pooled_retriever
from earmark.retrieval.search import (
    WINDOWS_S,
    Hit,
    TermSearch,
    _batches,
    merge_hits,
    search,
    sliding_windows,
)
from earmark.retrieval.term_units import TermUnits
from earmark.retrieval.text_tower import SpellingTower
from earmark.retrieval.unit_head import UnitHead
from earmark.retrieval.whisper_frames import WhisperFrames

TONES_HZ = {"a": 400, "b": 900, "c": 1700, "d": 3000}
LETTER_S = 0.16
THRESHOLD = 4.0  # a letter that is heard is worth 2.5
DIM = 32


def speech(text: str, seconds: float, at_s: float, seed: int) -> np.ndarray:
    """`seconds` of quiet noise in which the letters of `text` sound one after the other from `at_s` on."""
    random = np.random.default_rng(seed)
    samples = 0.01 * random.standard_normal(round(seconds * SAMPLE_RATE))
    for number, letter in enumerate(text.replace(" ", "")):
        start = round((at_s + number * LETTER_S) * SAMPLE_RATE)
        time_s = np.arange(round(LETTER_S * SAMPLE_RATE)) / SAMPLE_RATE
        swell = np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.02)  # a tone that breaks off would click
        samples[start : start + time_s.size] += 0.3 * swell * np.sin(2 * np.pi * TONES_HZ[letter] * time_s)
    return samples.astype(np.float32)


def hearing_head(encoder: WhisperEncoder) -> UnitHead:
    """A head fitted in one step, not trained: which tone each frame of the random encoder stands in."""
    retriever = alignment_retriever(
        WhisperFrames.of(encoder, 1), UnitHead(DIM, DIM, 4, 0, 3, 0.0), TermUnits.of("letters", ["abcd"], {})
    )
    random = np.random.default_rng(5)
    frames, labels = [], []
    for seed in range(60):
        letters, seconds = random.choice(list("abcd"), random.integers(0, 7)), random.uniform(1.5, 4.0)
        at_s = random.uniform(0, seconds - len(letters) * LETTER_S)
        with torch.inference_mode():
            heard = retriever[0].sub_modules["audio"][0](
                retriever.preprocess([speech("".join(letters), seconds, at_s, seed)], modality="audio")
            )["frames"][0]
        letter = np.floor(((np.arange(len(heard)) + 0.25) * 0.04 - at_s) / LETTER_S).astype(int)
        labels += ["abcd".index(letters[i]) + 1 if 0 <= i < len(letters) else 0 for i in letter]
        frames.append(torch.nn.functional.layer_norm(heard, (DIM,)).numpy())
    fit = LogisticRegression(C=10.0, max_iter=1000).fit(np.concatenate(frames), labels)
    head = UnitHead(DIM, DIM, 4, 0, 3, 0.0)
    with torch.no_grad():
        head.input[2].weight.copy_(torch.eye(DIM))
        head.input[2].bias.zero_()
        head.output[2].weight.copy_(torch.from_numpy(fit.coef_))
        head.output[2].bias.copy_(torch.from_numpy(fit.intercept_))
    return head


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run as the workflow leaves one, of which a search reads the model, the index and the metrics."""
    folder = tmp_path_factory.mktemp("data") / "tones"
    torch.manual_seed(0)
    shape = {"d_model": DIM, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    encoder = WhisperEncoder(WhisperConfig(**shape)).eval()
    with torch.no_grad():  # random weights let little of the sound through beside the place in the window
        encoder.conv1.weight.normal_(std=0.1)
        encoder.conv2.weight.normal_(std=0.3)
        encoder.embed_positions.weight.zero_()
    units = TermUnits.of("letters", ["abcd"], {})
    retriever = alignment_retriever(WhisperFrames.of(encoder, 1), hearing_head(encoder), units)
    retriever.save_pretrained(str(folder / "models/retriever"), create_model_card=False)
    write_json(folder / "glossary/glossary.json", {term: {"term": term} for term in ("abc", "abcd", "dbd")})
    write_json(folder / "glossary/alt2main.json", {"cad": "dbd"})
    build_index(
        folder / "models/retriever",
        folder / "glossary/glossary.json",
        folder / "glossary/alt2main.json",
        folder / "index/retriever",
        kind="auto",
        threads=1,
        max_rejected_fraction=0.0,
    )
    metrics = {"rejection_threshold": THRESHOLD, "calibration": {"slope": 1.0, "intercept": -THRESHOLD}}
    write_json(folder / "evaluation/retriever/metrics.json", metrics)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """24 s in which abc is said at 3.1 s and at 4.5 s, and cad (for dbd) at 17.9 s."""
    pieces = [speech("abc", 4.0, 3.1, 1), speech("abc", 4.0, 0.5, 2), speech("cad", 16.0, 9.9, 3)]
    path = tmp_path_factory.mktemp("audio") / "recording.flac"
    soundfile.write(path, np.concatenate(pieces), SAMPLE_RATE)
    return path


def hit(term: str, start_s: float, end_s: float, score: float) -> Hit:
    return Hit(term, term, start_s, end_s, score, None)


@given(
    st.floats(0.01, 300.0), st.lists(st.sampled_from([0.5, 1.3, 2.0, 4.0, 30.0]), min_size=1, max_size=3, unique=True)
)
def test_windows_of_each_length_hold_every_sample_and_come_in_order(duration_s, windows_s):
    windows = sliding_windows(duration_s, windows_s)
    assert [window.start_s for window in windows] == sorted(window.start_s for window in windows)
    assert len(set(windows)) == len(windows)
    for length_s in windows_s:
        reached_s = 0.0
        for window in windows:
            whole = window.end_s - window.start_s >= min(length_s, duration_s) - 1e-4
            if whole and window.start_s <= reached_s:
                reached_s = max(reached_s, window.end_s)
        assert reached_s >= duration_s
    assert all(window.end_s <= duration_s + 1 / SAMPLE_RATE for window in windows)


def test_what_is_no_longer_than_half_a_window_lies_whole_in_one():
    windows = sliding_windows(20.3, [2.0])
    for start_s in np.arange(0, 19.3, 0.01):
        assert any(window.start_s <= start_s and start_s + 1.0 <= window.end_s for window in windows)


@pytest.mark.parametrize("windows_s", [[], [0.1], [2.0, 31.0], [math.nan]])
def test_windows_that_no_encoder_hears_are_refused(windows_s):
    with pytest.raises(InputError, match=r"give lengths from 0\.5 to 30 s"):
        sliding_windows(10.0, windows_s)


def test_one_term_heard_in_two_windows_is_one_hit():
    merged = merge_hits([hit("rome", 1.0, 1.5, 7.0), hit("rome", 1.04, 1.5, 9.0), hit("rome", 3.0, 3.4, 6.0)])
    assert merged == [hit("rome", 1.04, 1.5, 9.0), hit("rome", 3.0, 3.4, 6.0)]


def test_a_shorter_term_inside_a_better_one_falls_away_and_a_neighbour_stays():
    longer = hit("new york stock exchange", 1.0, 2.4, 30.0)
    nested, neighbour = hit("stock exchange", 1.7, 2.4, 20.0), hit("lima", 2.36, 2.8, 8.0)
    assert merge_hits([nested, neighbour, longer]) == [longer, neighbour]


def test_a_hit_that_fell_away_takes_no_other_with_it():
    best, second, third = hit("a", 0.0, 1.0, 9.0), hit("b", 0.3, 1.6, 8.0), hit("c", 1.1, 1.7, 7.0)
    assert merge_hits([third, second, best]) == [best, third]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20), st.floats(0.04, 4.0), st.integers(0, 20)), max_size=30)
)
def test_no_two_merged_hits_claim_the_same_speech_and_nothing_falls_away_for_less(rows):
    hits = [hit(term, start_s, start_s + length_s, float(score)) for term, start_s, length_s, score in rows]
    merged = merge_hits(hits)

    def overlap_s(one: Hit, other: Hit) -> float:
        return min(one.end_s, other.end_s) - max(one.start_s, other.start_s)

    for number, one in enumerate(merged):
        for other in merged[number + 1 :]:
            assert overlap_s(one, other) <= 0 or one.term != other.term
            assert overlap_s(one, other) <= min(one.end_s - one.start_s, other.end_s - other.start_s) / 2
    for one in hits:
        assert one in merged or any(overlap_s(one, other) > 0 and other.score >= one.score for other in merged)


def test_terms_are_found_where_they_are_said_and_nowhere_else(run, recording):
    hits = search(recording, run)
    assert [(found.term, found.surface) for found in hits] == [("abc", "abc"), ("abc", "abc"), ("dbd", "cad")]
    for found, start_s in zip(hits, (3.1, 4.5, 17.9), strict=True):
        assert found.start_s == pytest.approx(start_s, abs=0.15)
        assert found.end_s == pytest.approx(start_s + 3 * LETTER_S, abs=0.15)
        assert found.score > THRESHOLD
        assert found.probability == pytest.approx(1 / (1 + math.exp(THRESHOLD - found.score)))


def test_an_encoder_of_8_bits_hears_the_same_terms_and_only_where_it_was_asked_for(run, recording):
    assert [found.term for found in search(recording, run, encoder_precision="int8")] == ["abc", "abc", "dbd"]
    assert TermSearch(run, encoder_precision="int8")._retriever.encoder_precision == "int8"
    retriever = load_retriever(run / "models/retriever")
    clip = retriever[0].sub_modules["audio"][0].preprocess([speech("abcd", 1.2, 0.3, 7)])
    frames = []
    for precision in ("float32", "int8", "float32"):
        retriever.encoder_precision = precision
        frames.append(hear(retriever, dict(clip))["frames"].numpy())
    assert np.array_equal(frames[0], frames[2])
    assert 0 < np.linalg.norm(frames[1] - frames[0]) / np.linalg.norm(frames[0]) < 0.1
    with pytest.raises(ConfigError, match="'int4'; there are float32 and int8"):
        retriever.encoder_precision = "int4"


def test_hits_do_not_depend_on_the_files_rate_and_channels(run, recording, tmp_path):
    samples = soxr.resample(soundfile.read(recording)[0], SAMPLE_RATE, 3 * SAMPLE_RATE)
    soundfile.write(tmp_path / "48k.wav", np.stack([samples, samples], axis=1), 3 * SAMPLE_RATE)
    assert [found.term for found in search(tmp_path / "48k.wav", run)] == ["abc", "abc", "dbd"]


def test_a_clip_shorter_than_every_window_is_heard_whole(run, tmp_path):
    soundfile.write(tmp_path / "clip.wav", speech("abcd", 1.2, 0.3, 7), SAMPLE_RATE)
    terms = TermSearch(run)
    assert [found.term for found in terms.hits(tmp_path / "clip.wav")] == ["abcd"]  # abc, inside it, is not said
    ranked = terms.ranking(tmp_path / "clip.wav", k=2)
    assert [found.term for found in ranked] == ["abcd", "abc"]
    assert terms.hits(tmp_path / "clip.wav", threshold=ranked[0].score) == []


def test_a_pooled_retriever_gives_the_times_of_its_windows(recording, tmp_path):
    torch.manual_seed(0)
    encoder = WhisperEncoder(WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16))
    head, tower = AudioHead(16, 16, 16, 2, 1, 3, 0.0), SpellingTower(256, 1, 3, 16, 16, 0.0)
    model, index = tmp_path / "models/retriever", tmp_path / "index/retriever"
    pooled_retriever(WhisperFrames.of(encoder, 1), head, tower).save_pretrained(str(model), create_model_card=False)
    surfaces, _ = index_surfaces(load_retriever(model), {"abc": "abc", "big apple": "new york"})
    write_index(surfaces, index, load_retriever(model))
    windows = {(window.start_s, window.end_s) for window in sliding_windows(24.0, [2.0])}
    hits = search(recording, tmp_path, windows_s=[2.0], threshold=-1.01)
    assert {found.term for found in hits} <= {"abc", "new york"} and hits
    assert all((found.start_s, found.end_s) in windows for found in hits)


def test_k_is_the_most_terms_of_a_window(run, recording):
    one = TermSearch(run).hits(recording, k=1, windows_s=[30.0], threshold=-50.0)
    assert [found.term for found in one] == ["abc"]
    with pytest.raises(InputError, match="at least one"):
        search(recording, run, k=0)


def test_a_long_recording_is_never_whole_in_memory(tmp_path):
    minutes = 15
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(minutes):
            file.write(np.zeros(60 * SAMPLE_RATE, np.float32))
    tracemalloc.start()
    windows = sum(len(windows) for windows, _ in _batches(path, WINDOWS_S))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert windows == len(sliding_windows(minutes * 60.0, WINDOWS_S))
    assert peak < minutes * 60 * SAMPLE_RATE * 4 / 2


@pytest.mark.parametrize("metrics", [None, {"rejection_threshold": None}])
def test_without_a_threshold_the_error_says_where_one_comes_from(run, recording, tmp_path, metrics):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "models").symlink_to(run / "models")
    (bare / "index").symlink_to(run / "index")
    if metrics is not None:
        write_json(bare / "evaluation/retriever/metrics.json", metrics)
    with pytest.raises(InputError, match=r"metrics\.json: .*run the evaluate stage"):
        search(recording, bare)
    assert all(found.probability is None for found in search(recording, bare, threshold=THRESHOLD))


def test_audio_that_cannot_be_heard_is_named_with_its_place(run, tmp_path):
    broken = speech("abc", 8.0, 1.0, 1)
    broken[round(6.5 * SAMPLE_RATE)] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: between 0\.0 and 8\.0 s: .*NaN"):
        search(tmp_path / "nan.wav", run)
    soundfile.write(tmp_path / "empty.wav", np.empty(0, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"empty\.wav: holds no sample"):
        search(tmp_path / "empty.wav", run)
    with pytest.raises(AudioError, match="no such file"):
        search(tmp_path / "missing.wav", run)


def test_the_package_gives_what_a_user_needs():
    assert earmark.search is search
    assert {getattr(earmark, name).__name__ for name in earmark.__all__} == set(earmark.__all__)
    with pytest.raises(AttributeError):
        _ = earmark.nothing


def earmark_command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["earmark", *map(str, arguments)])
    return cli.main()


def test_the_command_prints_a_json_line_for_each_hit(run, recording, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    (run.parent.parent / "data").exists() or (run.parent.parent / "data").symlink_to(run.parent)
    assert earmark_command(monkeypatch, "search", recording, "--run", "tones", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["surface"] for line in lines] == ["abc", "abc", "cad"]
    assert all(line["start_s"] == round(line["start_s"], 3) for line in lines)
    assert lines[0].keys() == Hit.__dataclass_fields__.keys()


def test_the_command_hears_in_8_bits_where_asked(run, recording, monkeypatch, capsys):
    assert earmark_command(monkeypatch, "search", recording, "--run", run, "--json", "--encoder-precision", "int8") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["term"] for line in lines] == ["abc", "abc", "dbd"]
    asked = []
    monkeypatch.setattr(TermSearch, "__init__", lambda self, *arguments: asked.extend(arguments[1:]))
    with pytest.raises(AttributeError):
        earmark_command(monkeypatch, "search", recording, "--run", run, "--encoder-precision", "int8")
    assert asked == ["retriever", "int8"]


def test_the_command_says_what_came_nearest_in_a_clip_without_a_term(run, monkeypatch, tmp_path, capsys):
    soundfile.write(tmp_path / "clip.wav", speech("abcd", 2.2, 0.5, 8), SAMPLE_RATE)
    arguments = ["search", tmp_path / "clip.wav", "--run", run, "-k", 2]
    assert earmark_command(monkeypatch, *arguments) == 0
    header, best, second = capsys.readouterr().out.splitlines()
    assert "abcd" in best and best.split()[-1] == "abcd"
    assert second.endswith("same speech as a better one")
    assert earmark_command(monkeypatch, *arguments, "--threshold", 50) == 0
    header, best, second, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["start", "end", "score", "prob.", "term", "surface"]
    assert best.endswith("under the threshold") and second.endswith("under the threshold")
    assert verdict.startswith("none: no term scores over 50.00; the nearest is 'abcd'")
    assert earmark_command(monkeypatch, *arguments, "--threshold", 50, "--json") == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "the nearest is 'abcd'" in printed.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RECORDING", "--run", "nowhere"], "nowhere: no trained run"),
        (["RECORDING", "--run", "RUN", "--backend", "other"], "holds no trained retriever"),
        (["RECORDING", "--run", "RUN", "--windows", "2", "40"], "windows of 2 and 40 s: give lengths"),
        (["RECORDING", "--run", "RUN", "--threshold", "nan"], "threshold"),
        (["missing.wav", "--run", "RUN"], "missing.wav: there is no such file"),
        (["README", "--run", "RUN"], "cannot be read as audio"),
    ],
)
def test_the_command_states_an_error_as_one_sentence(run, recording, monkeypatch, capsys, arguments, told):
    places = {"RECORDING": recording, "RUN": run, "README": Path(__file__)}
    assert earmark_command(monkeypatch, "search", *(places.get(word, word) for word in arguments)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("earmark: ") and told in printed.err and printed.err.count("\n") == 1


def copied(run: Path, folder: Path) -> Path:
    """A copy of `run` whose index may change."""
    folder.mkdir()
    for name in ("models", "evaluation"):
        (folder / name).symlink_to(run / name)
    (folder / "index/retriever").mkdir(parents=True)
    table = run / "index/retriever/terms.parquet"
    (folder / "index/retriever/terms.parquet").write_bytes(table.read_bytes())
    return folder


def test_terms_that_are_added_are_found_without_training(run, tmp_path, monkeypatch, capsys):
    changed = copied(run, tmp_path / "changed")
    soundfile.write(tmp_path / "clip.wav", speech("bcbdca", 2.0, 0.5, 9), SAMPLE_RATE)
    assert "bcb dca" not in [found.term for found in search(tmp_path / "clip.wav", changed)]
    (tmp_path / "new.txt").write_text("Bcb-Dca\nABC\nxyz\nyou\n", encoding="utf-8")
    assert earmark_command(monkeypatch, "index", "add", "--run", changed, "--terms", tmp_path / "new.txt") == 0
    printed = capsys.readouterr().out
    assert "surfaces added: 1; known already: 1; cannot be pronounced: 1" in printed
    assert "known already: abc" in printed and "cannot be pronounced: xyz" in printed and "stop_words: you" in printed
    assert [found.term for found in search(tmp_path / "clip.wav", changed)] == ["bcb dca"]
    assert earmark_command(monkeypatch, "index", "add", "--run", changed, "--terms", tmp_path / "new.txt") == 0
    assert "surfaces added: 0; known already: 2; cannot be pronounced: 1" in capsys.readouterr().out


def test_added_aliases_stand_for_their_main_term_and_the_runs_filters_hold(run, tmp_path, monkeypatch, capsys):
    changed = copied(run, tmp_path / "changed")
    filters = {"min_characters": 3, "suffixes": ["Bad"]}
    write_json(changed / "config.json", {"glossary": {"filters": filters, "blacklist": None}})
    (tmp_path / "new.tsv").write_text("term\taliases\nabc\tdcbd|bcdc\ncab bad\t\n", encoding="utf-8")
    assert earmark_command(monkeypatch, "index", "add", "--run", changed, "--terms", tmp_path / "new.tsv") == 0
    assert "listed_suffix: cab bad" in capsys.readouterr().out
    soundfile.write(tmp_path / "clip.wav", speech("dcbd", 2.0, 0.5, 9), SAMPLE_RATE)
    assert [(found.term, found.surface) for found in search(tmp_path / "clip.wav", changed)] == [("abc", "dcbd")]


@pytest.mark.parametrize("command", [[], ["search"], ["index", "add"], ["figures"], ["convert"], ["resume"]])
def test_the_command_tells_what_it_takes(monkeypatch, capsys, command):
    with pytest.raises(SystemExit, match="0"):
        earmark_command(monkeypatch, *command, "--help")
    assert "usage: earmark" in capsys.readouterr().out
