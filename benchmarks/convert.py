"""How fast lists are converted without lengths, beside the plain script that a user would write.

    .venv/bin/python benchmarks/convert.py

The list has lines of {"key", "wav", "txt"} with ten English words, or twenty Chinese characters; the audio does not
exist, as nothing looks at it. "script": json.loads and json.dumps line by line, which checks nothing and loses the
whole output to the first broken line. "convert": `convert` in a fresh process, imports aside. "command":
`earmark convert` as a user starts it. CPU seconds, and lines a second of them; the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from corpus_scale import measured

from earmark.export.convert import convert
from earmark.export.formats import FORMATS

PROMPT = "Transcribe the speech."
TEXTS = {
    "en": "we found the {} near the old bridge and waited there",
    "zh": "他们在第{}座大桥附近等了很久才回到家里去",
}


def write_list(path: Path, lines: int, language: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            wav = f"audio/{number // 1000:05d}/utterance-{number:09d}.wav"
            row = {"key": f"utterance-{number:09d}", "wav": wav, "txt": TEXTS[language].format(number)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def script(source: Path, output: Path, format: str) -> dict[str, Any]:
    with source.open(encoding="utf-8") as lines, output.open("w", encoding="utf-8") as file:
        for line in lines:
            row = json.loads(line)
            wav, text = os.path.abspath(os.path.join(source.parent, row["wav"])), row["txt"]  # noqa: PTH100, PTH118 (as users do)
            user = f"语音转写：<|startofspeech|>!{wav}<|endofspeech|>"
            made: dict[str, Any]
            if format == "funasr_nano":
                system = {"role": "system", "content": "You are a helpful assistant."}
                turns = [system, {"role": "user", "content": user}, {"role": "assistant", "content": text}]
                made = {"messages": turns}
            elif format == "funasr":
                made = {"key": row["key"], "source": wav, "target": text}
            elif format == "conversation":
                asked = {"from": "user", "value": f"<audio>{wav}</audio> {PROMPT}"}
                made = {"conversations": [asked, {"from": "assistant", "value": text}]}
            else:
                made = {"audio": wav, "text": text, "prompt": PROMPT}
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    return {}


def in_process(source: Path, output: Path, format: str) -> dict[str, Any]:
    convert(
        source, output, format=format, calculate_lengths=False, tokenizer="bundled:qwen", prompt=PROMPT,
        audio_root=None, max_rejected_fraction=0.1,
    )  # fmt: skip
    return {}


def command_cpu_s(source: Path, output: Path, format: str) -> float:
    earmark = Path(sys.executable).with_name("earmark")
    arguments = ["convert", "--no-calculate-lengths", "--input", source, "--output", output, "--format", format]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([earmark, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    names = ("script", "convert", "command")
    print(line("language, format", "lines", *(f"{name} s" for name in names), *(f"{name} /s" for name in names)))
    for language in TEXTS:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "list.jsonl"
            write_list(source, options.lines, language)
            for format in FORMATS:
                theirs, ours = Path(name) / "theirs.jsonl", Path(name) / "ours.jsonl"
                seconds = [
                    (
                        measured(script, source, theirs, format)["cpu_s"],
                        measured(in_process, source, ours, format)["cpu_s"],
                        command_cpu_s(source, ours, format),
                    )
                    for _ in range(options.rounds)
                ]
                check(theirs, ours)
                best = [min(column) for column in zip(*seconds, strict=True)]
                cells = [f"{each:.1f}" for each in best] + [f"{options.lines / each:,.0f}" for each in best]
                print(line(f"{language}, {format}", options.lines, *cells), flush=True)


def check(theirs: Path, ours: Path) -> None:
    """SystemExit unless both files say the same."""
    with theirs.open("rb") as first, ours.open("rb") as second:
        for number, pair in enumerate(zip(first, second, strict=True), start=1):
            if json.loads(pair[0]) != json.loads(pair[1]):
                raise SystemExit(f"line {number}: the script's line says something else")


line = "{:<20}{:>9}{:>10}{:>11}{:>11}{:>12}{:>12}{:>12}".format


if __name__ == "__main__":
    main()
