"""Four speech synthesisers behind one call: texts in, samples and the synthesiser's own word times out.

Needs the Debian packages named in `make_demo_corpus.py`. Every function takes a voice's settings from
`voices.yaml` and a dict id -> text, and returns id -> `Spoken`.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 16_000
FLITE_VOICES = ("kal16", "awb", "rms", "slt")


@dataclass(frozen=True)
class Word:
    """A spoken word. Times are seconds from the first sample of the `Spoken` it belongs to."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Spoken:
    """One utterance. `samples`: float64 [T] at 16 kHz; `words` are text.split(), in order."""

    samples: np.ndarray
    words: tuple[Word, ...]


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """The same sound at 16 kHz: its spectrum cut or padded, so that nothing is delayed."""
    if rate == SAMPLE_RATE:
        return samples
    # Whole blocks of 0.02 s make the length at both rates an integer, and the time axis exact.
    block = rate // 50
    padded = np.pad(samples, (0, -len(samples) % block + block))
    target = len(padded) * SAMPLE_RATE // rate
    spectrum = np.fft.rfft(padded)[: target // 2 + 1]
    resampled = np.fft.irfft(spectrum, target) * target / len(padded)
    return resampled[: len(samples) * SAMPLE_RATE // rate]


def _collect(texts: dict[str, str], folder: Path, listing: str) -> dict[str, Spoken]:
    """Join the wavs in `folder` with lines id, token, start, end; refuse tokens that are not the text's words."""
    words: dict[str, list[Word]] = {key: [] for key in texts}
    for line in listing.splitlines():
        key, token, start, end = line.split("\t")
        words[key].append(Word(token, float(start), float(end)))
    spoken = {}
    for key, text in texts.items():
        if [word.word for word in words[key]] != text.split():
            raise ValueError(f"{key}: spoken tokens {words[key]} are not the words of {text!r}")
        samples, rate = sf.read(folder / f"{key}.wav")
        spoken[key] = Spoken(resample(samples, rate), tuple(words[key]))
    return spoken


@functools.cache
def _flite_program() -> Path:
    """Compile `flite_words.c` once a run; the path of the program."""
    program = Path(tempfile.mkdtemp(prefix="flite_words_")) / "flite_words"
    libraries = [f"-lflite_cmu_us_{voice}" for voice in FLITE_VOICES]
    libraries += ["-lflite_usenglish", "-lflite_cmulex", "-lflite", "-lm"]
    command = ["cc", "-O2", "-o", str(program), str(HERE / "flite_words.c"), *libraries]
    subprocess.run(command, check=True)
    return program


def speak_flite(voice: dict, texts: dict[str, str]) -> dict[str, Spoken]:
    """flite: word times are the segment ends in its utterance structure (see flite_words.c)."""
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f"{key}\t{text}\n" for key, text in texts.items())
        command = [str(_flite_program()), voice["name"], folder]
        done = subprocess.run(command, input=lines, text=True, check=True, stdout=subprocess.PIPE)
        return _collect(texts, Path(folder), done.stdout)


def speak_festival(voice: dict, texts: dict[str, str]) -> dict[str, Spoken]:
    """festival: word times are the features word_start and word_end (see festival_words.scm)."""
    with tempfile.TemporaryDirectory() as folder:
        calls = [f'(load "{HERE / "festival_words.scm"}")', f"(voice_{voice['name']})"]
        calls += [f'(speak_text "{key}" "{folder}/{key}.wav" "{text}")' for key, text in texts.items()]
        script = Path(folder) / "speak.scm"
        script.write_text("\n".join(calls) + "\n", encoding="utf-8")
        command = ["festival", "--batch", str(script)]
        done = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE)
        return _collect(texts, Path(folder), done.stdout)


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; `sample` counts samples at the library's rate."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
# espeak joins some function words with the word before them ("in the", "to be") and reports one word for both;
# the second is the last so many phonemes of the group.
_JOINED_PHONEMES = {"a": 1, "an": 2, "be": 2, "not": 3, "of": 2, "the": 2, "was": 3}


@functools.cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """The library, set to hand samples and phoneme events to a callback, and its sample rate."""
    library = ctypes.CDLL("libespeak-ng.so.1")
    synchronous, phoneme_events_ipa = 2, 1 | 2
    return library, library.espeak_Initialize(synchronous, 0, None, phoneme_events_ipa)


def _espeak_events(text: str) -> tuple[np.ndarray, int, list[tuple[str, int, str]]]:
    """Speak with the voice now set: samples, their rate, and events (what, sample, word or phoneme)."""
    library, rate = _espeak()
    blocks: list[np.ndarray] = []
    events: list[tuple[str, int, str]] = []

    def receive(wave, count, event_list):
        if wave and count:
            blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while event_list[index].type != _EVENT_LIST_TERMINATED:
            event = event_list[index]
            if event.type == _EVENT_WORD:
                events.append(("word", event.sample, str(event.text_position - 1)))
            elif event.type == _EVENT_PHONEME:
                events.append(("phoneme", event.sample, event.id.string.decode("utf-8", "replace")))
            index += 1
        return 0

    callback = _SYNTH_CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    encoded = text.encode("utf-8")
    characters_utf8 = 1
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, characters_utf8, None, None)
    return np.concatenate(blocks) / 32768.0, rate, events


def _espeak_words(text: str, rate: int, events: list[tuple[str, int, str]]) -> tuple[Word, ...]:
    """Word times from the events.

    A word starts at its word event (for a stop, that is where the closure begins) or, where a pause
    (a phoneme without a name) lies there, at its first phoneme; it ends where the next phoneme, pause or
    word begins.
    """
    starts_at, position = {}, 0
    tokens = text.split()
    for index, token in enumerate(tokens):
        starts_at[position] = index
        position += len(token) + 1

    # Per reported word: [index of the word, [(sample, phoneme), ...]], pauses kept as phonemes named "".
    groups: list[tuple[int, int, list[tuple[int, str]]]] = []
    for what, sample, value in events:
        if what == "word" and int(value) in starts_at:
            groups.append((starts_at[int(value)], sample, []))
        elif what == "phoneme" and groups:
            groups[-1][2].append((sample, value))

    bounds: dict[int, tuple[int, int]] = {}
    for number, (index, word_sample, phonemes) in enumerate(groups):
        following = groups[number + 1] if number + 1 < len(groups) else None
        named = [sample for sample, name in phonemes if name]
        pauses = [sample for sample, name in phonemes if not name and sample > named[-1]]
        leading_pause = number == 0 or any(not name for sample, name in groups[number - 1][2] if sample == word_sample)
        start = named[0] if leading_pause else word_sample
        end = pauses[0] if pauses else following[1]
        joined = list(range(index + 1, following[0] if following else len(tokens)))
        for second in reversed(joined):
            count = _JOINED_PHONEMES.get(tokens[second], len(named))
            if len(named) <= count:
                raise ValueError(f"{text!r}: no phonemes of its own for {tokens[second]!r}")
            bounds[second] = (named[-count], end)
            end = named[-count]
            named = named[:-count]
        bounds[index] = (start, end)
    if sorted(bounds) != list(range(len(tokens))):
        raise ValueError(f"{text!r}: espeak reported words {sorted(bounds)} of {len(tokens)}")
    return tuple(Word(token, bounds[i][0] / rate, bounds[i][1] / rate) for i, token in enumerate(tokens))


def speak_espeak(voice: dict, texts: dict[str, str]) -> dict[str, Spoken]:
    """espeak-ng through its library: word times from its word and phoneme events."""
    library, _ = _espeak()
    parameter_rate, parameter_pitch = 1, 3
    if library.espeak_SetVoiceByName(voice["name"].encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice['name']}")
    library.espeak_SetParameter(parameter_rate, voice["rate"], 0)
    library.espeak_SetParameter(parameter_pitch, voice["pitch"], 0)
    spoken = {}
    for key, text in texts.items():
        samples, rate, events = _espeak_events(text)
        spoken[key] = Spoken(resample(samples, rate), _espeak_words(text, rate, events))
    return spoken


_HIBARI_DURATIONS = "/Cast_32_output_0"
_HIBARI_FRAME_S = 0.0125
_HIBARI_LEAD_S = 0.0625


@functools.cache
def _hibari():
    """hibari's voice, its network with the duration (frames a phoneme) as one more output."""
    import onnx
    import onnxruntime
    from hibari import Hibari

    voice = Hibari(voice="heart")
    model = onnx.load(voice.model_path)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_HIBARI_DURATIONS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return voice, session


def _warp_bins(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """Formants moved by `factor` (below 1: down): [bins, F] read at bin / factor."""
    bins = np.minimum(np.arange(len(spectrum)) / factor, len(spectrum) - 1)
    low = np.floor(bins).astype(int)
    high = np.minimum(low + 1, len(spectrum) - 1)
    part = (bins - low)[:, None].astype(np.float32)
    return spectrum[low] * (1 - part) + spectrum[high] * part


def _hibari_words(
    tokens: list[str], spans: list[tuple[int, int]], edges_s: np.ndarray, samples: np.ndarray
) -> tuple[Word, ...]:
    """Word times from the phonemes' edges in seconds; `samples` at 16 kHz.

    A blank between two words is shared by both. All is early by `_HIBARI_LEAD_S`: the sound of a frame leads
    the phoneme it is for. The last phoneme is given silence too, so the last word ends with the sound.
    """
    words = []
    for token, (first, last) in zip(tokens, spans, strict=True):
        start_s = edges_s[first] if first == 1 else (edges_s[first - 1] + edges_s[first]) / 2
        end_s = (edges_s[last] + edges_s[last + 1]) / 2
        words.append(Word(token, float(start_s - _HIBARI_LEAD_S), float(end_s - _HIBARI_LEAD_S)))
    words[-1] = replace(words[-1], end_s=_sound_end_s(samples, words[-1]))
    return tuple(words)


def _sound_end_s(samples: np.ndarray, word: Word) -> float:
    """The end of the last 10 ms within `word` that are less than 35 dB below its loudest 10 ms."""
    step = SAMPLE_RATE // 100
    first, last = round(word.start_s * 100), round(word.end_s * 100)
    blocks = samples[first * step : last * step]
    blocks = blocks[: len(blocks) // step * step].reshape(-1, step)
    level = np.sqrt((blocks**2).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (-35 / 20))
    return (first + int(loud[-1]) + 1) / 100


def speak_hibari(voice: dict, texts: dict[str, str]) -> dict[str, Spoken]:
    """hibari: word times from the durations its network gives each phoneme."""
    from hibari import dsp

    tts, session = _hibari()
    spoken = {}
    for key, text in texts.items():
        phonemes = tts.g2p(text, normalize_text=False).split(" ")
        tokens = text.split()
        if len(phonemes) != len(tokens):
            raise ValueError(f"{text!r}: {len(tokens)} words, {len(phonemes)} in {phonemes}")
        ids, spans = [0], []
        for number, sounds in enumerate(phonemes):
            if number:
                ids.append(tts.vocab[" "])
            first = len(ids)
            ids += [tts.vocab[sound] for sound in sounds if sound in tts.vocab]
            spans.append((first, len(ids)))
        ids += [tts.vocab["."], 0]
        names = [output.name for output in session.get_outputs()]
        inputs = {"ids": np.array([ids], np.int64), "speed": np.array([voice.get("speed", 1.0)], np.float32)}
        out = dict(zip(names, session.run(names, inputs), strict=True))
        durations = out.pop(_HIBARI_DURATIONS).reshape(-1)
        out = {name: value[0] for name, value in out.items()}
        frames = out["f0"].shape[-1]
        edges = np.concatenate([[0], np.cumsum(durations)]) * (frames / durations.sum())
        formant_factor = voice.get("formant_factor", 1.0)
        parts = [_warp_bins(out[name], formant_factor) for name in ("lh", "theta", "ln", "lr", "phi")]
        noise = np.random.default_rng(len(text))
        samples = dsp.synth(*parts, out["f0"] * np.float32(voice.get("f0_factor", 1.0)), noise)
        samples = resample(samples.astype(np.float64), dsp.SR)
        words = _hibari_words(tokens, spans, edges * _HIBARI_FRAME_S, samples)
        spoken[key] = Spoken(samples, words)
    return spoken


SPEAK: dict[str, Callable[[dict, dict[str, str]], dict[str, Spoken]]] = {
    "flite": speak_flite,
    "festival": speak_festival,
    "espeak": speak_espeak,
    "hibari": speak_hibari,
}
