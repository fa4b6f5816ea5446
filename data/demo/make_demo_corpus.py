"""Make the demo corpus: synthetic English speech with known word times, for the demo glossary.

Needs Debian 12's packages: flite flite1-dev gcc libc6-dev festival festvox-kallpc16k festvox-kdlpc16k
festvox-us-slt-hts libespeak-ng1 espeak-ng-data; and from pip: numpy soundfile pyarrow pyyaml
hibari-tts==0.2.1 onnx onnxruntime.

    python data/demo/make_demo_corpus.py

reads voices.yaml, glossary.yaml and sentences.yaml beside it, and writes audio/*.ogg, manifest.tsv,
word_times.parquet, glossary_filtered.json, alt2main.json and splits.yaml. The same inputs and versions
give the same corpus.
"""

from __future__ import annotations

import csv
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import yaml
from plan_texts import Glossary, Plan, TextPlanner
from synthesisers import SAMPLE_RATE, SPEAK, Spoken, Word

HERE = Path(__file__).resolve().parent
# libsndfile maps 0 ... 1 to 256 ... 6 kbit/s for mono Opus: 0.9615 is 15.6 kbit/s.
OPUS_COMPRESSION_LEVEL = 0.9615
SPEECH_RMS = 0.06
SPEECH_PEAK = 0.9
NOISE_RMS = 3e-4
FADE_S = 0.01
SPEECH_S = (1.8, 4.9)
SPEECH_TWO_TERMS_S = (2.5, 6.2)
TWO_TERMS_APART_S = 1.5
TRIES = 30
COLUMNS = ["segment_id", "recording_id", "audio", "offset_s", "duration_s", "speaker", "voice", "text", "language"]
WORD_TIMES = pa.schema(
    {
        "segment_id": pa.string(),
        "words": pa.list_(pa.struct({"word": pa.string(), "start_s": pa.float64(), "end_s": pa.float64()})),
    }
)


@dataclass(frozen=True)
class Segment:
    """One cut-out utterance. `samples`: [T] at 16 kHz, T a whole number of milliseconds; times from its start."""

    plan: Plan
    samples: np.ndarray
    words: tuple[Word, ...]


def complaint(glossary: Glossary, plan: Plan, spoken: Spoken) -> str:
    """Why this utterance must be worded otherwise; empty when it may stay."""
    speech_s = spoken.words[-1].end_s - spoken.words[0].start_s
    mentions = glossary.find(plan.text)
    shortest_s, longest_s = SPEECH_TWO_TERMS_S if len(mentions) == 2 else SPEECH_S
    if not shortest_s <= speech_s <= longest_s:
        return f"{speech_s:.2f} s of speech"
    if len(mentions) == 2:
        last_of_first = mentions[0][0] + len(mentions[0][1].split()) - 1
        apart_s = spoken.words[mentions[1][0]].start_s - spoken.words[last_of_first].end_s
        if apart_s < TWO_TERMS_APART_S:
            return f"its terms are {apart_s:.2f} s apart"
    return ""


def speak_plans(
    glossary: Glossary, planner: TextPlanner, voice_id: str, voice: dict, plans: list[Plan]
) -> list[tuple[Plan, Spoken]]:
    """Speak a voice's utterances; what is too long, too short or too dense is worded again and spoken again."""
    plans = list(plans)
    done: dict[int, Spoken] = {}
    for _ in range(TRIES):
        texts = {f"u{i:03}": plan.text for i, plan in enumerate(plans) if i not in done}
        for key, spoken in SPEAK[voice["synthesiser"]](voice, texts).items():
            index = int(key[1:])
            if complaint(glossary, plans[index], spoken):
                plans[index] = planner.again(plans[index])
            else:
                done[index] = spoken
        if len(done) == len(plans):
            return [(plan, done[i]) for i, plan in enumerate(plans)]
    left = [plan.text for i, plan in enumerate(plans) if i not in done]
    raise ValueError(f"{voice_id}: no fitting words after {TRIES} tries for {left}")


def cut_segment(plan: Plan, spoken: Spoken, rng: np.random.Generator) -> Segment:
    """Cut 0.1 to 0.2 s before the first word and after the last, at an even loudness."""
    first_s, last_s = spoken.words[0].start_s, spoken.words[-1].end_s
    lead_s, tail_s = rng.uniform(0.1, 0.2, 2)
    start = round((first_s - lead_s) * SAMPLE_RATE)
    size = round((last_s + tail_s - start / SAMPLE_RATE) * 1000) * (SAMPLE_RATE // 1000)
    before = max(0, -start)
    cut = np.pad(spoken.samples, (before, max(0, start + size - len(spoken.samples))))[start + before :][:size]
    speech = spoken.samples[round(first_s * SAMPLE_RATE) : round(last_s * SAMPLE_RATE)]
    gain = min(SPEECH_RMS / np.sqrt(np.mean(speech**2)), SPEECH_PEAK / np.abs(speech).max())
    fade = np.linspace(0, 1, round(FADE_S * SAMPLE_RATE))
    samples = cut * gain
    samples[: len(fade)] *= fade
    samples[-len(fade) :] *= fade[::-1]
    shift_s = start / SAMPLE_RATE
    words = tuple(Word(word.word, word.start_s - shift_s, word.end_s - shift_s) for word in spoken.words)
    return Segment(plan, samples, words)


def pack_talk(path: Path, segments: list[Segment], rng: np.random.Generator) -> list[float]:
    """Write segments one after the other, with pauses and faint noise; their offsets in seconds."""
    millisecond = SAMPLE_RATE // 1000
    pieces, offsets, position = [], [], 0
    for segment in segments:
        pause = np.zeros(int(rng.integers(250, 350)) * millisecond)
        offsets.append((position + len(pause)) / SAMPLE_RATE)
        pieces += [pause, segment.samples]
        position += len(pause) + len(segment.samples)
    talk = np.concatenate([*pieces, np.zeros(300 * millisecond)])
    talk += rng.normal(0, NOISE_RMS, len(talk))
    sf.write(path, talk, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION_LEVEL)
    check_decoded(path, talk)
    return offsets


def check_decoded(path: Path, talk: np.ndarray) -> None:
    """The file decodes to as many samples as went in, none of them late."""
    decoded, rate = sf.read(path)
    if rate != SAMPLE_RATE or len(decoded) != len(talk):
        raise ValueError(f"{path}: {len(decoded)} samples at {rate} Hz; {len(talk)} went in")
    size = 2 * len(talk)
    correlation = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(talk, size)), size)
    delay = int(np.argmax(correlation))
    if delay not in (0, 1, size - 1):
        raise ValueError(f"{path}: decoded speech is {delay} samples late")


def talks_of(count: int, bounds: list[int], rng: np.random.Generator) -> list[range]:
    """Split `count` utterances into talks of about as many as `bounds` allows."""
    talks = max(1, round(count / rng.integers(bounds[0], bounds[1] + 1)))
    edges = np.linspace(0, count, talks + 1).round().astype(int)
    return [range(a, b) for a, b in pairwise(edges.tolist())]


def write_one_line_each(path: Path, entries: dict) -> None:
    """A JSON object with one entry a line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_glossary(glossary: Glossary) -> None:
    """glossary_filtered.json and alt2main.json."""
    phrases = {
        phrase: {"term": entry["display"], "short_description": entry["about"]}
        for phrase, entry in glossary.terms.items()
    }
    write_one_line_each(HERE / "glossary_filtered.json", phrases)
    aliases = {surface: main for surface, main in glossary.main_of.items() if surface != main}
    write_one_line_each(HERE / "alt2main.json", aliases)


def write_splits(voices: dict[str, dict], glossary: Glossary) -> None:
    """splits.yaml: who speaks in test and dev only, and the terms that only test speakers say."""
    speakers = {
        f"{split}_speakers": sorted({voice["speaker"] for voice in voices.values() if voice["split"] == split})
        for split in ("test", "dev")
    }
    content = {**speakers, "unseen_terms": [phrase for phrase in glossary.terms if phrase in glossary.unseen]}
    (HERE / "splits.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def make_split(split: str) -> tuple[list[list[str]], list[dict]]:
    """Write the recordings of one split; its manifest rows and word times."""
    settings, loaded, sentences = load_sources()
    glossary, seed = Glossary.from_yaml(loaded), settings["seed"]
    voices = {voice_id: voice for voice_id, voice in settings["voices"].items() if voice["split"] == split}
    planner = TextPlanner(split, glossary, sentences, seed)
    plans = planner.plan({voice_id: voice["utterances"] for voice_id, voice in voices.items()})
    rows, word_times = [], []
    for voice_id, voice in voices.items():
        rng = np.random.default_rng([seed, *voice_id.encode()])
        spoken = speak_plans(glossary, planner, voice_id, voice, plans[voice_id])
        segments = [cut_segment(plan, utterance, rng) for plan, utterance in spoken]
        for number, talk in enumerate(talks_of(len(segments), settings["talk_utterances"], rng), 1):
            recording_id = f"{voice_id}-{number:02}"
            audio = f"audio/{recording_id}.ogg"
            in_talk = [segments[i] for i in talk]
            offsets = pack_talk(HERE / audio, in_talk, rng)
            for place, (segment, offset_s) in enumerate(zip(in_talk, offsets, strict=True), 1):
                segment_id = f"{recording_id}-{place:03}"
                duration_s = len(segment.samples) / SAMPLE_RATE
                values = [segment_id, recording_id, audio, f"{offset_s:.3f}", f"{duration_s:.3f}"]
                rows.append([*values, voice["speaker"], voice_id, segment.plan.text, "en"])
                words = [
                    {"word": w.word, "start_s": round(w.start_s, 4), "end_s": round(w.end_s, 4)} for w in segment.words
                ]
                word_times.append({"segment_id": segment_id, "words": words})
        print(f"{voice_id}: {len(segments)} utterances", flush=True)
    return rows, word_times


def load_sources() -> tuple[dict, dict, dict]:
    """voices.yaml, glossary.yaml and sentences.yaml."""
    voices, glossary, sentences = (
        yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
        for name in ("voices.yaml", "glossary.yaml", "sentences.yaml")
    )
    return voices, glossary, sentences


def main() -> None:
    """Make the whole corpus anew, the splits side by side."""
    settings, loaded, _ = load_sources()
    shutil.rmtree(HERE / "audio", ignore_errors=True)
    (HERE / "audio").mkdir()
    rows, word_times = [], []
    with ProcessPoolExecutor(max_workers=3) as pool:
        for split_rows, split_times in pool.map(make_split, ("train", "dev", "test")):
            rows += split_rows
            word_times += split_times
    with (HERE / "manifest.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *rows])
    table = pa.Table.from_pylist(word_times, WORD_TIMES)
    pq.write_table(table, HERE / "word_times.parquet", compression="zstd", compression_level=19)
    glossary = Glossary.from_yaml(loaded)
    write_glossary(glossary)
    write_splits(settings["voices"], glossary)


if __name__ == "__main__":
    main()
