"""What a fine-tuned Fun-ASR-Nano transcribes of a split's chunks."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earmark.artifacts import ANSWERS, StageTable
from earmark.audio import audio_info
from earmark.errors import AudioError, EarmarkError, InputError
from earmark.files import opened, read_json
from earmark.funasr_nano.chatml import SpokenLine, UnusableLine, parsed_lines, spoken_line
from earmark.funasr_nano.environment import run

log = logging.getLogger(__name__)

WHICH_MODEL = "which_model.json"  # in a model folder: which of its files to use
_SMOKE_TOKENS = 64


def transcribe_split(
    model: Path,
    lines_path: Path,
    output: Path,
    *,
    python: Path,
    max_new_tokens: int,
    batch_size: int,
    threads: int,
    max_rejected_fraction: float,
) -> None:
    """Write what the model in `model` hears in the audio of `lines_path` (schema ANSWERS).

    Lines are ChatML or FunASR's older ones; the prompt is each line's own, its text is not shown to the model. A
    chunk's id is the name of its wav. `python` is the interpreter of FunASR's environment. A line that cannot be read
    or transcribed is rejected; TooManyRejectedError above `max_rejected_fraction`, InputError if there is no line.
    """
    unfinished = 0
    with (
        tempfile.TemporaryDirectory(prefix="earmark-transcribe-") as scratch,
        StageTable(output, ANSWERS, unit="chunks", max_rejected_fraction=max_rejected_fraction) as table,
    ):
        questions = Path(scratch, "questions.jsonl")
        asked = _write_questions(lines_path, questions, table)
        if not table.rejected.input:
            raise InputError(f"{lines_path}: holds no line, so there is nothing to transcribe; run the export again")
        if asked:
            _ask(model, questions, python=python, max_new_tokens=max_new_tokens, batch_size=batch_size, threads=threads)
        for audio, answer in zip(asked, _answers(questions, len(asked)), strict=True):
            if "error" in answer:
                table.reject(audio.stem, "not_transcribed", f"{audio}: {answer['error']}")
                continue
            row = {name: answer[name] for name in ("text", "finished", "seconds")}
            table.keep({"chunk_id": audio.stem, **row})
            unfinished += not answer["finished"]
    kept = table.rejected.kept
    log.info("%s: %d transcripts, %d of them cut off at %d tokens", output, kept, unfinished, max_new_tokens)


def smoke_transcription(
    model: Path, lines_path: Path, *, python: Path, weights: Path | None = None, threads: int = 1
) -> str:
    """What the model hears in the audio of the first line of `lines_path`, which is logged.

    `weights` in place of the file that `model`'s note names. EarmarkError if the model cannot be loaded or fails.
    """
    row_id, row = next(parsed_lines(lines_path), (None, None))
    if row_id is None:
        raise InputError(f"{lines_path}: holds no line to transcribe")
    spoken = spoken_line(row_id, row)
    with tempfile.TemporaryDirectory(prefix="earmark-transcribe-") as scratch:
        questions = Path(scratch, "questions.jsonl")
        questions.write_text(_question(0, spoken), encoding="utf-8")
        _ask(
            model, questions, python=python, max_new_tokens=_SMOKE_TOKENS, batch_size=1, threads=threads,
            weights=weights,
        )  # fmt: skip
        (answer,) = _answers(questions, 1)
    if "error" in answer:
        raise EarmarkError(
            f"{model}: the trained model cannot transcribe {spoken.audio} ({answer['error']}); the lines above say "
            "where it failed"
        )
    log.info("smoke transcription of %s: %r where %r was said", spoken.audio.name, answer["text"], spoken.text)
    return str(answer["text"])


def weights_of(model: Path) -> Path:
    """The file of weights that the note in a model folder says to use. InputError if there is no such file."""
    weights = model / str(read_json(model / WHICH_MODEL)["use"])
    if not weights.is_file():
        raise InputError(f"{weights}: there is no such file, though {WHICH_MODEL} names it; train the model again")
    return weights


def _ask(
    model: Path,
    questions: Path,
    *,
    python: Path,
    max_new_tokens: int,
    batch_size: int,
    threads: int,
    weights: Path | None = None,
) -> None:
    """Have the model answer the questions of a file; the answers lie beside it."""
    job = {
        "model_dir": str(model.absolute()),
        "weights": str((weights or weights_of(model)).absolute()),
        "questions": str(questions),
        "answers": str(_answers_path(questions)),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "threads": threads,
    }
    run(python, "transcribe", job, threads=threads)


def _write_questions(lines_path: Path, questions: Path, table: StageTable) -> list[Path]:
    """Write a question about each line that can be asked, reject the others: the audio of each question."""
    asked: list[Path] = []
    with questions.open("w", encoding="utf-8") as file:
        for row_id, row in parsed_lines(lines_path):
            table.rejected.input += 1
            try:
                spoken = spoken_line(row_id, row)
                audio_info(spoken.audio)
            except UnusableLine as error:
                table.reject(row_id, error.reason, f"{lines_path.parent / row_id}: {error}")
            except AudioError as error:
                table.reject(row_id, "bad_audio", str(error))
            else:
                file.write(_question(len(asked), spoken))
                asked.append(spoken.audio)
    return asked


def _question(number: int, spoken: SpokenLine) -> str:
    # Ids are numbers here: two lines may be about the same audio.
    return json.dumps({"id": number, "messages": spoken.question}, ensure_ascii=False) + "\n"


def _answers(questions: Path, n_asked: int) -> Iterator[dict[str, Any]]:
    """The answers, in the order of the questions."""
    if not n_asked:
        return
    count = 0
    with opened(_answers_path(questions)) as file:
        for line in file:
            answer = json.loads(line)
            if answer["id"] != count:
                raise AssertionError(f"answer {answer['id']} came in place {count}")
            count += 1
            yield answer
    if count != n_asked:
        raise AssertionError(f"{count} answers to {n_asked} questions")


def _answers_path(questions: Path) -> Path:
    return questions.with_name("answers.jsonl")
