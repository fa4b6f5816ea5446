"""Writing one split in one training format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from earmark.artifacts import RejectedRows, atomic_path, iterate_rows, write_json
from earmark.export.formats import NO_TERM, Example, fbank_frames, line_problem, line_writer, text_units
from earmark.export.funnel import counts_path
from earmark.export.hints import Hints
from earmark.export.tokenizer import token_counter
from earmark.export.wavs import wav_path
from earmark.files import read_json
from earmark.text import readable


def export_split(
    split: Path,
    glossary: Path,
    wav_folders: Mapping[str, Path],
    output: Path,
    *,
    format: str,
    task: str,
    prompt: str,
    tokenizer: str,
    max_rejected_fraction: float,
    hints: Hints | None = None,
) -> None:
    """Write `output` (JSONL) from a SPLITS table, and its counts beside it (`counts_path`).

    `wav_folders[shard]` is where that shard's wavs lie, or will when a reader has unpacked them.

    The conversation and flat formats learn `task`: transcribe (the chunk's words) or spot_terms (the display forms of
    the terms heard, or "none"). The funasr formats always transcribe, and have no prompt. With `hints` a line's prompt
    goes on with the chunk's, and the counts have theirs under `hints`. Every line is read back and checked. Rejected:
    no_text, a chunk without words where the format transcribes; too_short, less than one fbank frame where the format
    counts them.
    """
    line_of = line_writer(format, token_counter(tokenizer) if format == "funasr_nano" else text_units)
    transcribes = task == "transcribe" or format.startswith("funasr")
    display = {main: entry["term"] for main, entry in read_json(glossary).items()}
    rejected = RejectedRows("chunks", max_rejected_fraction)
    with atomic_path(output) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for row in iterate_rows(split):
                rejected.input += 1
                terms = [row["main_term"], *row["other_terms"]] if row["has_term"] else []
                wav = wav_path(wav_folders[row["shard"]], row["recording_id"], row["chunk_id"])
                text = readable(row["text"])
                example = Example(
                    key=row["chunk_id"],
                    wav=str(wav.absolute()),
                    duration_s=row["duration_s"],
                    text=text,
                    prompt=hints.added_to(prompt, row, display) if hints is not None else prompt,
                    answer=text if transcribes else ", ".join(display[term] for term in terms) or NO_TERM,
                )
                if not example.answer:
                    rejected.reject(row["chunk_id"], "no_text", "no aligned word lies in the chunk")
                    continue
                if format.startswith("funasr") and fbank_frames(example.duration_s) < 1:
                    rejected.reject(row["chunk_id"], "too_short", f"{example.duration_s:.3f} s hold no fbank frame")
                    continue
                line = json.dumps(line_of(example), ensure_ascii=False)
                if problem := line_problem(format, json.loads(line)):
                    raise AssertionError(f"{row['chunk_id']}: the {format} line written is not valid: {problem}")
                file.write(line + "\n")
                rejected.kept += 1
        rejected.close(output)
    write_json(counts_path(output), rejected.counts() | ({} if hints is None else {"hints": hints.counts()}))
    logging.info("%d lines, %d rejected", rejected.kept, rejected.rejected)
    if hints is not None:
        logging.info("hints: %s", hints.counts())
