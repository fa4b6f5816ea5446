"""What a corpus costs at scale: reading and sharding its manifest, and checking a shard's audio.

    .venv/bin/python benchmarks/corpus_scale.py
    .venv/bin/python benchmarks/corpus_scale.py --segments 10000000 --shards 100 --formats tsv --checks 0

The manifests are synthetic (ids, times, ten words a segment; every recording has 20 segments, with --alone one) and
need no audio. The shards to check hold, first, segments of 0.5 to 1 s laid over the 71 recordings of the demo, closer
and closer: what a segment costs. Then the demo's recordings again and again under other names: what decoding (of Opus)
costs. Each figure is that of a process of its own. Peak memory is its maximum resident set, some 85 MB of which are
imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from earmark.artifacts import StageTable, table_counts
from earmark.audio import audio_info
from earmark.corpus.segments import Checks, check_segments
from earmark.corpus.sharding import MANIFEST, split_manifest

REPO = Path(__file__).resolve().parent.parent
SEGMENTS_PER_RECORDING = 20
WORDS = ["time", "year", "people", "way", "day", "thing", "world", "school", "state", "family", "student"]


def entries(segments: int, per_recording: int) -> Iterator[tuple[str, str, int, float, float, str]]:
    """(segment, recording, number in the recording, offset_s, duration_s, text)."""
    for number in range(segments):
        recording, place = divmod(number, per_recording)
        duration_s = 1 + number * 7919 % 1400 / 100
        text = " ".join(WORDS[number * step % len(WORDS)] for step in range(1, 11))
        yield f"SEG{number:09d}", f"REC{recording:08d}", place, place * 15.0, duration_s, text


def write_tsv(folder: Path, segments: int, per_recording: int) -> Path:
    path = folder / "manifest.tsv"
    with path.open("w") as file:
        file.write("segment_id\taudio\trecording_id\toffset_s\tduration_s\tspeaker\ttext\n")
        for segment, recording, _, offset_s, duration_s, text in entries(segments, per_recording):
            audio = f"audio/{recording[3:7]}/{recording}.opus"
            file.write(f"{segment}\t{audio}\t{recording}\t{offset_s}\t{duration_s}\t{recording}\t{text}\n")
    return path


def write_jsonl(folder: Path, segments: int, per_recording: int) -> Path:
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for segment, recording, _, offset_s, duration_s, text in entries(segments, per_recording):
            row = {"key": segment, "wav": f"audio/{recording[3:7]}/{recording}.opus", "txt": text}
            times = {"offset_s": offset_s, "duration_s": duration_s, "speaker": recording}
            file.write(json.dumps(row | times) + "\n")
    return path


def write_kaldi(folder: Path, segments: int, per_recording: int) -> Path:
    path = folder / "kaldi"
    path.mkdir()
    with (
        (path / "text").open("w") as texts,
        (path / "segments").open("w") as times,
        (path / "utt2spk").open("w") as speakers,
        (path / "wav.scp").open("w") as audio,
    ):
        for segment, recording, place, offset_s, duration_s, text in entries(segments, per_recording):
            texts.write(f"{segment} {text}\n")
            times.write(f"{segment} {recording} {offset_s:.2f} {offset_s + duration_s:.2f}\n")
            speakers.write(f"{segment} {recording}\n")
            if not place:
                audio.write(f"{recording} audio/{recording[3:7]}/{recording}.wav\n")
    return path


def write_gigaspeech_tsv(folder: Path, segments: int, per_recording: int) -> Path:
    path = folder / "gigaspeech.tsv"
    with path.open("w") as file:
        file.write("id\taudio\tn_frames\tspeaker\tsrc_text\tsrc_lang\n")
        for segment, recording, _, offset_s, duration_s, text in entries(segments, per_recording):
            frames = round(duration_s * 16_000)
            audio = f"audio/{recording[3:7]}/{recording}.opus:{round(offset_s * 16_000)}:{frames}"
            file.write(f"{segment}\t{audio}\t{frames}\t{recording}\t{text.upper()} <PERIOD>\ten\n")
    return path


def write_gigaspeech_json(folder: Path, segments: int, per_recording: int) -> Path:
    path = folder / "GigaSpeech.json"
    with path.open("w") as file:
        file.write('{"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": [')
        audio: dict[str, Any] = {}
        for segment, recording, place, offset_s, duration_s, text in entries(segments, per_recording):
            if not place:
                if audio:
                    file.write(json.dumps(audio) + ",\n")
                name = f"audio/{recording[3:7]}/{recording}.opus"
                audio = {"aid": recording, "path": name, "speaker": recording, "subsets": ["{XL}"], "segments": []}
            times = {"begin_time": offset_s, "end_time": round(offset_s + duration_s, 2)}
            row = {
                "sid": segment,
                "speaker": "N/A",
                **times,
                "text_tn": f"{text.upper()} <PERIOD>",
                "subsets": ["{XL}"],
            }
            audio["segments"].append(row)
        file.write(json.dumps(audio) + "]}\n")
    return path


WRITERS: dict[str, tuple[str, Callable[[Path, int, int], Path]]] = {
    "tsv": ("tsv", write_tsv),
    "jsonl": ("jsonl", write_jsonl),
    "kaldi": ("kaldi", write_kaldi),
    "gigaspeech-tsv": ("gigaspeech", write_gigaspeech_tsv),
    "gigaspeech-json": ("gigaspeech", write_gigaspeech_json),
}


def split(format: str, manifest: Path, shards: int, folder: Path) -> dict[str, Any]:
    names = {f"{number:04d}": folder / f"manifest/{number:04d}.parquet" for number in range(shards)}
    split_manifest(
        manifest, names, folder / "manifest.json", format=format, audio_root=None, columns={}, subset=None,
        language="en", max_rejected_fraction=0.0,
    )  # fmt: skip
    return {}


def short_segments(folder: Path, segments: int) -> Iterator[dict[str, Any]]:
    """Manifest rows of segments of 0.5 to 1 s, laid evenly over the demo's recordings."""
    durations_s = {recording: audio_info(recording).duration_s for recording in demo_recordings()}
    total_s = sum(durations_s.values())
    numbers = itertools.count()
    for recording, recording_s in durations_s.items():
        count = round(segments * recording_s / total_s)
        for place in range(count):
            yield row(recording, next(numbers), place / count * (recording_s - 1), 0.5 + place % 6 / 10)


def whole_recordings(folder: Path, files: int) -> Iterator[dict[str, Any]]:
    """Manifest rows of so many files, which are the demo's recordings, each cut into segments of 4 s."""
    recordings = demo_recordings()
    numbers = itertools.count()
    for file in range(files):
        alias = folder / f"{file:06d}.ogg"
        alias.symlink_to(recordings[file % len(recordings)])
        for place in range(int(audio_info(alias).duration_s // 4)):
            yield row(alias, next(numbers), place * 4.0, 4.0)


def demo_recordings() -> list[Path]:
    return sorted((REPO / "data/demo/audio").iterdir())


def row(recording: Path, number: int, offset_s: float, duration_s: float) -> dict[str, Any]:
    return {
        "segment_id": f"s{number:08d}",
        "recording_id": recording.stem,
        "speaker_id": recording.stem,
        "audio_path": str(recording),
        "offset_s": offset_s,
        "duration_s": duration_s,
        "text": "the words of a segment",
        "language": "en",
        "source": f"manifest.tsv:{number + 2}",
    }


def write_shard(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with StageTable(path, MANIFEST, unit="segments", max_rejected_fraction=0) as table:
        for number, manifest_row in enumerate(rows, start=1):
            table.rejected.input = number
            table.keep(manifest_row)


def check(manifest_shard: Path, output: Path) -> dict[str, Any]:
    configured = yaml.safe_load((REPO / "config.yaml").read_text(encoding="utf-8"))["corpus"]["checks"]
    check_segments(manifest_shard, output, Checks(**configured), max_rejected_fraction=1.0)
    return table_counts(output)


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returned in a fresh process, with `seconds` and `peak_mb` of that process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure(sender: Any, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    started, cpu_started = time.perf_counter(), time.process_time()
    result = function(*arguments)
    costs = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_started}
    sender.send(result | costs | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="one segment a recording instead of 20")
    parser.add_argument("--formats", nargs="*", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--checks", nargs="*", type=int, default=[10_000, 30_000, 100_000], help="segments; 0: none")
    parser.add_argument("--files", nargs="*", type=int, default=[100, 300, 1000], help="whole recordings; 0: none")
    options = parser.parse_args()
    per_recording = 1 if options.alone else SEGMENTS_PER_RECORDING
    print(line("manifest into shards", "segments", "s", "cpu s", "segments/s", "peak MB"))
    for name in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            format, write = WRITERS[name]
            manifest = write(Path(folder), options.segments, per_recording)
            cost = measured(split, format, manifest, options.shards, Path(folder) / "out")
        shards = f"{options.shards} shard{'s' * (options.shards > 1)}"
        report(f"{name}, {shards}", options.segments, options.segments / cost["seconds"], cost)
    print(line("\naudio checks of one shard", "segments", "s", "cpu s", "x real time", "peak MB"))
    sizes = [(short_segments, size, "0.5 to 1 s, over the demo", 0.75) for size in options.checks if size]
    sizes += [(whole_recordings, size, f"4 s, of {size} recordings", 4.0) for size in options.files if size]
    for rows, size, what, mean_s in sizes:
        with tempfile.TemporaryDirectory() as folder:
            shard = Path(folder) / "manifest.parquet"
            write_shard(shard, rows(Path(folder), size))
            cost = measured(check, shard, Path(folder) / "checked.parquet")
        report(what, cost["input"], cost["input"] * mean_s / cost["seconds"], cost)
        if cost["rejected"]:
            print(f"  {cost['rejected']} rejected: {cost['reasons']}")


line = "{:<34}{:>10}{:>8}{:>8}{:>14}{:>10}".format


def report(what: str, segments: int, rate: float, cost: dict[str, Any]) -> None:
    cells = f"{cost['seconds']:.1f}", f"{cost['cpu_s']:.1f}", f"{rate:,.0f}", f"{cost['peak_mb']:.0f}"
    print(line(what, segments, *cells), flush=True)


if __name__ == "__main__":
    main()
