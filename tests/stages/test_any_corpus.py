"""One corpus written down in every format that can be read: the same segments with the same audio come out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from earmark.artifacts import iterate_rows
from earmark.audio import SAMPLE_RATE, AudioSource, read_spans
from earmark.corpus.segments import Checks, check_segments
from earmark.corpus.sharding import split_manifest
from earmark.files import read_json

CHECKS = {
    "min_duration_s": 0.2, "max_duration_s": 40.0, "min_peak": 0.001, "min_dynamic_range_db": 6.0, "max_clipped": 0.02,
    "min_sample_rate": 8000, "max_channels": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(demo):
    """A few utterances of two recordings, with the path of their audio and their samples."""
    with (demo / "manifest.tsv").open(encoding="utf-8") as file:
        every = list(csv.DictReader(file, delimiter="\t"))
    names = sorted({row["recording_id"] for row in every})
    names = [name for name in names if name.endswith("-01")][:2]
    chosen = [row for name in names for row in [row for row in every if row["recording_id"] == name][:4]]
    for row in chosen:
        row["path"] = str(demo / row["audio"])
        row["start"], row["length"] = float(row["offset_s"]), float(row["duration_s"])
        span = (row["start"], row["start"] + row["length"])
        [row["samples"]] = read_spans(AudioSource(Path(row["path"])), [span])
    return chosen


def write_tsv(folder, rows):
    columns = ("segment_id", "recording_id", "audio", "offset_s", "duration_s", "speaker", "text")
    lines = ["\t".join(columns), *("\t".join(row[name] for name in columns) for row in rows)]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.tsv"


def write_jsonl(folder, rows):
    lines = [
        {
            "key": row["segment_id"], "wav": row["audio"], "txt": row["text"], "offset_s": row["start"],
            "duration_s": row["length"], "speaker": row["speaker"],
        }
        for row in rows
    ]  # fmt: skip
    return write_lines(folder / "manifest.jsonl", lines)


def write_lines(path, objects):
    data = "".join(json.dumps(row) + "\n" for row in objects).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_gigaspeech_json(folder, rows):
    audios = []
    for name in dict.fromkeys(row["recording_id"] for row in rows):
        mine = [row for row in rows if row["recording_id"] == name]
        segments = [
            {
                "sid": row["segment_id"], "speaker": row["speaker"], "begin_time": row["start"],
                "end_time": row["start"] + row["length"], "text_tn": row["text"].upper() + " <PERIOD>",
                "subsets": ["{XL}"],
            }
            for row in mine
        ]  # fmt: skip
        audios.append({"aid": name, "path": mine[0]["audio"], "speaker": "N/A", "segments": segments})
    path = folder / "GigaSpeech.json"
    path.write_text(json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": audios}))
    return path


def write_gigaspeech_tsv(folder, rows):
    lines = ["id\taudio\tn_frames\tspeaker\tsrc_text\tsrc_lang"]
    for row in rows:
        offset, frames = round(row["start"] * SAMPLE_RATE), round(row["length"] * SAMPLE_RATE)
        text = row["text"].upper() + " <PERIOD>"
        lines.append(f"{row['segment_id']}\t{row['audio']}:{offset}:{frames}\t{frames}\t{row['speaker']}\t{text}\ten")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.tsv"


def write_librispeech(folder, rows):
    lines = {}
    for number, row in enumerate(rows):
        speaker = 100 + [other["speaker"] for other in rows].index(row["speaker"])
        chapter = folder / f"LibriSpeech/train-clean-100/{speaker}/7"
        chapter.mkdir(parents=True, exist_ok=True)
        name = f"{speaker}-7-{number:04d}"
        soundfile.write(chapter / f"{name}.flac", row["samples"], SAMPLE_RATE)
        lines.setdefault(chapter / f"{speaker}-7.trans.txt", []).append(f"{name} {row['text'].upper()}\n")
    for path, found in lines.items():
        path.write_text("".join(found))
    return folder / "LibriSpeech"


def write_kaldi(folder, rows):
    recordings = {row["recording_id"]: row["audio"] for row in rows}
    files = {
        "wav.scp": [f"{name} {audio}" for name, audio in recordings.items()],
        "text": [f"{row['segment_id']} {row['text']}" for row in rows],
        "utt2spk": [f"{row['segment_id']} {row['speaker']}" for row in rows],
        "segments": [
            f"{row['segment_id']} {row['recording_id']} {row['start']} {row['start'] + row['length']}" for row in rows
        ],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    return folder


def write_lhotse(folder, rows):
    recordings, supervisions = {}, []
    for row in rows:
        info = soundfile.info(row["path"])
        recordings[row["recording_id"]] = {
            "id": row["recording_id"], "sampling_rate": info.samplerate, "num_samples": info.frames,
            "duration": info.duration, "channel_ids": [0],
            "sources": [{"type": "file", "channels": [0], "source": row["audio"]}],
        }  # fmt: skip
        supervisions.append(
            {
                "id": row["segment_id"], "recording_id": row["recording_id"], "start": row["start"],
                "duration": row["length"], "channel": 0, "text": row["text"], "language": "English",
                "speaker": row["speaker"],
            }
        )  # fmt: skip
    write_lines(folder / "recordings.jsonl.gz", recordings.values())
    write_lines(folder / "supervisions.jsonl.gz", supervisions)
    return folder


def hugging_face_rows(rows):
    for row in rows:
        buffer = io.BytesIO()
        soundfile.write(buffer, row["samples"], SAMPLE_RATE, format="FLAC")
        audio = {"bytes": buffer.getvalue(), "path": f"{row['segment_id']}.flac"}
        yield {"id": row["segment_id"], "audio": audio, "sentence": row["text"], "speaker_id": row["speaker"]}


def data_set(rows):
    return datasets.Dataset.from_list(list(hugging_face_rows(rows))).cast_column("audio", datasets.Audio(decode=False))


def write_datasets_folder(folder, rows):
    datasets.DatasetDict({"train": data_set(rows)}).save_to_disk(folder / "saved")
    return folder / "saved"


def write_parquet(folder, rows):
    data_set(rows).to_parquet(folder / "train-00000-of-00001.parquet", batch_size=3)
    return folder


FORMATS = [
    ("tsv", write_tsv),
    ("jsonl", write_jsonl),
    ("gigaspeech", write_gigaspeech_json),
    ("gigaspeech", write_gigaspeech_tsv),
    ("librispeech", write_librispeech),
    ("kaldi", write_kaldi),
    ("lhotse", write_lhotse),
    ("huggingface", write_datasets_folder),
    ("huggingface", write_parquet),
]
# Corpora that come with their audio; the others name the demo's, relative to the audio root.
HOLD_AUDIO = (write_librispeech, write_datasets_folder, write_parquet)
NAMELESS = (write_jsonl, write_gigaspeech_tsv)  # a recording is called after its file


@pytest.mark.parametrize(("format", "write"), FORMATS, ids=[write.__name__ for _, write in FORMATS])
def test_every_format_gives_the_same_segments_with_the_same_audio(format, write, rows, demo, tmp_path):
    (tmp_path / "corpus").mkdir()
    manifest = write(tmp_path / "corpus", rows)
    shards = {name: tmp_path / f"manifest/{name}.parquet" for name in ("0000", "0001")}
    split_manifest(
        manifest, shards, tmp_path / "manifest.json", format=format, columns={}, subset=None,
        audio_root=None if write in HOLD_AUDIO else demo,
        language="en", max_rejected_fraction=0.0,
    )  # fmt: skip
    found = []
    for name, shard in shards.items():
        check_segments(shard, tmp_path / f"{name}.parquet", Checks(**CHECKS), max_rejected_fraction=0.0)
        found.append(list(iterate_rows(tmp_path / f"{name}.parquet")))
    assert all(found), "both shards hold segments"
    assert not {row["recording_id"] for row in found[0]} & {row["recording_id"] for row in found[1]}
    assert read_json(tmp_path / "manifest.json")["without_speaker"] == 0

    expected = {row["text"]: row for row in rows}
    segments = [row for shard in found for row in shard]
    assert sorted(row["text"] for row in segments) == sorted(expected)
    speakers = {(row["speaker_id"], expected[row["text"]]["speaker"]) for row in segments}
    assert len(speakers) == len({row["speaker"] for row in rows})
    for row in segments:
        truth = expected[row["text"]]["samples"]
        span = (row["offset_s"], row["offset_s"] + row["duration_s"])
        [samples] = read_spans(AudioSource.of(row), [span])
        assert abs(len(samples) - len(truth)) <= 1  # times are written to the millisecond
        shared = min(len(samples), len(truth))
        assert np.abs(samples[:shared] - truth[:shared]).max() <= 1 / 32768  # 16 bit
        assert row["language"] == "en"
        assert row["channel"] is None or write is write_lhotse
        if write not in HOLD_AUDIO:
            assert (row["audio_path"], row["audio_row"]) == (expected[row["text"]]["path"], None)
            if write not in NAMELESS:
                assert row["recording_id"] == expected[row["text"]]["recording_id"]
