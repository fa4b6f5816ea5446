"""The lines that Fun-ASR-Nano is trained on: read, converted, checked, held against what FunASR drops in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from earmark.artifacts import RejectedRows, atomic_path, rejected_path
from earmark.audio import audio_info, is_missing
from earmark.errors import AudioError, ConfigError, InputError
from earmark.export.formats import fbank_frames
from earmark.export.tokenizer import BUNDLED, token_counter
from earmark.funasr_nano.chatml import SpokenLine, UnusableLine, parsed_lines, spoken_line
from earmark.logs import progress

log = logging.getLogger(__name__)

# What speech_length is instead, by how many times the frames it should be.
_OTHER_UNITS = {
    160.0: "samples at 16 kHz", 10.0: "milliseconds", 0.5: "20 ms frames", 0.25: "40 ms frames",
    1 / 6: "60 ms frames", 0.125: "80 ms frames", 0.01: "seconds",
}  # fmt: skip
# Why FunASR 1.4 passes over a line, none of which stops its training. Other reasons are Earmark's own checks.
DROPPED_BY_FUNASR = (
    "not_json", "no_audio_file", "unreadable_audio", "no_text_length", "too_short", "too_long", "text_too_long",
    "too_long_together", "too_many_tokens",
)  # fmt: skip

_NUMBERS = (
    "min_source_length", "max_source_length", "max_target_length", "max_token_length", "length_scale_source",
    "batch_size", "batch_size_sample_max", "batch_size_token_max", "sort_size",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What FunASR's dataset lets through. Lengths of speech are in 10 ms fbank frames unless said otherwise."""

    min_speech: int = 10
    max_speech: int = 8000  # max_source_length, by the lines' speech_length (FunASR's index)
    max_lfr: int = 3000  # max_source_length again, by the audio itself, in frames of 10 ms * lfr_n (its dataset)
    max_text: int = 2048  # max_target_length, tokens, by the lines' text_length
    max_together: float | None = 2048  # max_token_length, by speech_length + text_length (its batch sampler)
    max_input: int = 1500  # max_token_length again, tokens that the language model is given (its dataset)
    batch_size: int | None = None  # of speech_length + text_length, padded; None: batches are counted in lines
    max_batch_lines: int | None = None
    max_batch_tokens: int = 2500  # batch_size_token_max, padded; it counts where batch_size does
    lfr_n: int = 6
    do_think: bool = True  # false: an empty think block stands before each answer
    sys_prompt: bool = True
    tokenizer: str = BUNDLED  # or the folder of the model's own

    @classmethod
    def of(cls, conf: Mapping[str, Any], *, tokenizer: str = BUNDLED) -> Self:
        """The limits under FunASR's configuration `conf`: the model's own with all that is laid over it.

        Its keys `dataset`, `dataset_conf`, `frontend_conf` are read; what they leave out is as in FunASR 1.4.
        What `dataset_conf.prompt_classes` adds to prompts is not counted.
        ConfigError if the dataset or its index is another one than Fun-ASR-Nano's, whose rules are not known here, or
        a length is no number.
        """
        data = conf.get("dataset_conf") or {}
        for name, found in (("dataset", conf.get("dataset")), ("dataset_conf.index_ds", data.get("index_ds"))):
            if found != "FunASR":
                raise ConfigError(f"{name} is {found!r}; Fun-ASR-Nano's lines are read by FunASR (dataset: FunASR)")
        lfr_n = (conf.get("frontend_conf") or {}).get("lfr_n", cls.lfr_n)
        numbers = {f"dataset_conf.{name}": data[name] for name in _NUMBERS if name in data}
        for key, value in (numbers | {"frontend_conf.lfr_n": lfr_n}).items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigError(f"{key} is {value!r}; expected a number (leave the key out for FunASR's default)")
        by_lines = data.get("batch_type", "example") == "example"
        longest, most_tokens = data.get("max_source_length"), data.get("max_token_length")
        scale = data.get("length_scale_source", 1.0) if by_lines else 1.0
        together = most_tokens if by_lines or most_tokens is not None else cls.max_together
        return cls(
            min_speech=data.get("min_source_length", cls.min_speech),
            max_speech=cls.max_speech if longest is None else longest,
            max_lfr=cls.max_lfr if longest is None else longest,
            max_text=data.get("max_target_length", cls.max_text),
            max_together=None if together is None else together * scale,
            max_input=cls.max_input if most_tokens is None else most_tokens,
            batch_size=None if by_lines else data.get("batch_size"),
            max_batch_lines=(
                data.get("batch_size_sample_max", 200) if not by_lines and data.get("sort_size", -1) > 0 else None
            ),
            max_batch_tokens=data.get("batch_size_token_max", cls.max_batch_tokens),
            lfr_n=lfr_n,
            do_think=data.get("do_think", True),
            sys_prompt=data.get("sys_prompt", True),
            tokenizer=tokenizer,
        )


@dataclass
class LinesReport:
    """What became of the lines of one file."""

    source: str
    input: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of the rejected ones
    converted: int = 0  # from the older form
    measured: int = 0  # given the lengths that they lacked
    hours: float = 0.0  # of kept audio
    longest_s: float = 0.0
    longest_tokens: int = 0  # that the language model is given for one line
    longest_batch_tokens: int = 0  # most that a batch can hold, padding included; 0 where batches are counted in lines

    @property
    def rejected(self) -> int:
        return self.input - self.kept

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json; `dropped_by_funasr` counts those that FunASR would have passed over in silence."""
        silent = sum(count for reason, count in self.reasons.items() if reason in DROPPED_BY_FUNASR)
        return {
            "source": self.source,
            "input": self.input,
            "kept": self.kept,
            "rejected": self.rejected,
            "dropped_by_funasr": silent,
            "reasons": self.reasons,
            "converted": self.converted,
            "measured": self.measured,
            "hours": round(self.hours, 4),
            "longest_s": round(self.longest_s, 3),
            "longest_tokens": self.longest_tokens,
            "longest_batch_tokens": self.longest_batch_tokens,
        }


def prepare_lines(source: Path, destination: Path, *, limits: Limits, max_rejected_fraction: float) -> LinesReport:
    """Write those lines of `source` that FunASR trains on to `destination`, as ChatML with both lengths.

    `source` holds ChatML lines or the older ones, which are converted; lengths that a line lacks are computed, and
    others checked against the audio's header. What FunASR would pass over under `limits` is rejected here, with the
    reason, and so is what it would misread. Rejected lines lie in `{destination}.rejected.jsonl`, one {id, reason,
    detail} each; kept + rejected = input. InputError if no line is left; TooManyRejectedError above
    `max_rejected_fraction`; ConfigError if FunASR might take lines off its batches, which no line shows by itself.
    `destination` must end with .jsonl: FunASR takes other names for lists of files.
    """
    if destination.suffix != ".jsonl":
        raise ValueError(f"{destination}: does not end with .jsonl")
    checker = _Checker(limits)
    report = LinesReport(str(source))
    rejected = RejectedRows("lines", max_rejected_fraction)
    with atomic_path(destination) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for row_id, row in progress(parsed_lines(source), unit="lines"):
                rejected.input += 1
                place = f"{source.parent / row_id}"
                try:
                    spoken = spoken_line(row_id, row)
                    row_id = spoken.id
                    checked = checker.check(spoken)
                except UnusableLine as error:
                    rejected.reject(row_id, error.reason, f"{place}: {error}")
                    continue
                file.write(json.dumps(checked.row, ensure_ascii=False) + "\n")
                rejected.kept += 1
                checker.count(report, spoken, checked)
        report.input, report.kept = rejected.input, rejected.kept
        report.reasons = rejected.counts()["reasons"]
        report.longest_batch_tokens = checker.longest_batch_tokens()
        if not rejected.input:
            raise InputError(f"{source}: holds no line, so there is nothing to train on; run the export again")
        rejected.close(destination)
        if not rejected.kept:
            raise InputError(
                f"{source}: none of its {rejected.input} lines can be trained on ({_told(report.reasons)}); "
                f"{rejected_path(destination)} says why of each"
            )
        if report.longest_batch_tokens > limits.max_batch_tokens:
            raise ConfigError(
                f"dataset_conf.batch_size_token_max is {limits.max_batch_tokens}, but with batch_size "
                f"{limits.batch_size} a batch of {source} may hold {report.longest_batch_tokens} tokens, and FunASR "
                "would take lines off it without a word; raise batch_size_token_max to that, or lower batch_size"
            )
    _log(report, destination)
    return report


class _Checker:
    """Measures lines, and tells whether FunASR trains on them."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.count_tokens = token_counter(limits.tokenizer)
        self._prompt_tokens = cache(self._count_prompt)
        self._most_tokens: dict[int, int] = {}  # speech_length + text_length -> tokens of the longest such line

    def check(self, spoken: SpokenLine) -> _Checked:
        """The line with its lengths. UnusableLine if FunASR would pass over it, or its lengths are wrong."""
        limits = self.limits
        if is_missing(spoken.audio):
            raise UnusableLine("no_audio_file", f"{spoken.audio}: there is no such file")
        try:
            duration_s = audio_info(spoken.audio).duration_s
        except AudioError as error:
            raise UnusableLine("unreadable_audio", str(error)) from None
        frames = max(0, fbank_frames(duration_s))
        speech = frames if spoken.speech_length is None else spoken.speech_length
        if problem := _length_problem(speech, frames):
            raise UnusableLine("wrong_speech_length", problem)
        text = self.count_tokens(spoken.text) if spoken.text_length is None else spoken.text_length
        if text < 1:
            raise UnusableLine("no_text_length", f"text_length is {text}; expected the tokens of the text")
        if speech < limits.min_speech:
            raise UnusableLine("too_short", f"{speech} frames of 10 ms; min_source_length is {limits.min_speech}")
        if speech > limits.max_speech:
            raise UnusableLine("too_long", f"{speech} frames of 10 ms; max_source_length is {limits.max_speech}")
        lfr = -(-max(frames, 1) // limits.lfr_n)
        if lfr > limits.max_lfr:
            told = f"{lfr} frames of {10 * limits.lfr_n} ms; max_source_length is {limits.max_lfr}"
            raise UnusableLine("too_long", told)
        if text > limits.max_text:
            raise UnusableLine("text_too_long", f"{text} tokens; max_target_length is {limits.max_text}")
        together = speech + text
        if limits.max_together is not None and together > limits.max_together:
            raise UnusableLine(
                "too_long_together",
                f"{speech} frames of 10 ms and {text} tokens of text are {together} together, and FunASR's batches "
                f"leave out what is longer than max_token_length ({limits.max_together:g})",
            )
        if limits.batch_size is not None and together > limits.batch_size:
            raise UnusableLine(
                "longer_than_batch",
                f"{speech} frames of 10 ms and {text} tokens are more than a batch may hold ({limits.batch_size}), "
                "over which FunASR fails; raise dataset_conf.batch_size",
            )
        tokens = self._prompt_tokens(spoken.system, spoken.before, spoken.after) + _speech_tokens(lfr)
        tokens += self.count_tokens(f"{spoken.text}<|im_end|>")
        if tokens > limits.max_input:
            raise UnusableLine(
                "too_many_tokens", f"{tokens} tokens for the language model; max_token_length is {limits.max_input}"
            )
        row = {**spoken.row, "speech_length": speech, "text_length": text}
        return _Checked(row, duration_s, together, tokens)

    def count(self, report: LinesReport, spoken: SpokenLine, checked: _Checked) -> None:
        """Add a kept line to the report."""
        report.converted += spoken.converted
        report.measured += spoken.speech_length is None or spoken.text_length is None
        report.hours += checked.duration_s / 3600
        report.longest_s = max(report.longest_s, checked.duration_s)
        report.longest_tokens = max(report.longest_tokens, checked.tokens)
        self._most_tokens[checked.together] = max(self._most_tokens.get(checked.together, 0), checked.tokens)

    def longest_batch_tokens(self) -> int:
        """The most tokens, padding included, in any batch that FunASR may put together.

        FunASR takes lines off a batch that holds more than batch_size_token_max.
        """
        if self.limits.batch_size is None or not self._most_tokens:
            return 0
        lengths = sorted(self._most_tokens)
        longest = accumulate((self._most_tokens[length] for length in lengths), max)  # of all lines up to that length
        most = 0
        for length, tokens in zip(lengths, longest, strict=True):
            n_lines = self.limits.batch_size // length
            if self.limits.max_batch_lines is not None:
                n_lines = min(n_lines, self.limits.max_batch_lines)
            most = max(most, n_lines * tokens)
        return most

    def _count_prompt(self, system: str, before: str, after: str) -> int:
        """Tokens around the audio, which FunASR counts on either side of it for itself."""
        opening = f"<|im_start|>system\n{system}<|im_end|>\n" if self.limits.sys_prompt else ""
        think = "" if self.limits.do_think else "<think>\n\n</think>\n\n"
        return self.count_tokens(f"{opening}<|im_start|>user\n{before}") + self.count_tokens(
            f"{after}<|im_end|>\n<|im_start|>assistant\n{think}"
        )


@dataclass(frozen=True)
class _Checked:
    """A line that FunASR trains on."""

    row: dict[str, Any]
    duration_s: float
    together: int  # speech_length + text_length
    tokens: int


def _speech_tokens(lfr: int) -> int:
    """How many tokens of the language model `lfr` frames (10 ms * lfr_n each) become: two halvings, then one more."""
    halved = 1 + (lfr - 1) // 2
    quartered = 1 + (halved - 1) // 2
    return (quartered - 1) // 2 + 1


def _length_problem(stated: int, frames: int) -> str | None:
    """What is wrong with a stated speech_length, where the audio has so many frames; None if nothing is."""
    if abs(stated - frames) <= max(2, 0.02 * frames):
        return None
    told = f"speech_length is {stated}, but the audio has {frames} frames of 10 ms"
    for times, unit in _OTHER_UNITS.items():
        if abs(stated - times * frames) <= max(1, 0.05 * times * frames):
            return f"{told}; it looks like {unit}"
    return told


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]))


def _log(report: LinesReport, destination: Path) -> None:
    log.info(
        "%s: %d of %d lines can be trained on, %.2f hours, the longest %.1f s and %d tokens; %d converted, %d measured",
        report.source, report.kept, report.input, report.hours, report.longest_s, report.longest_tokens,
        report.converted, report.measured,
    )  # fmt: skip
    if report.rejected:
        silent = report.as_dict()["dropped_by_funasr"]
        log.warning(
            "%s: %d lines rejected (%s), %d of which FunASR would drop without a word; see %s",
            report.source, report.rejected, _told(report.reasons), silent, rejected_path(destination).name,
        )  # fmt: skip
