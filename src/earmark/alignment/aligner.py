"""What every aligner takes and gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from earmark.alignment.intervals import WordInterval
from earmark.audio import AudioSource


@dataclass(frozen=True, slots=True)
class Utterance:
    """A segment to align: [offset_s, offset_s + duration_s) of `audio`, in which `words` are spoken."""

    segment_id: str
    recording_id: str
    speaker_id: str
    language: str
    audio: AudioSource
    offset_s: float
    duration_s: float
    words: list[str]  # normalised, as text.words gives them

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Utterance:
        """The utterance of a CORPUS row."""
        return cls(
            segment_id=row["segment_id"],
            recording_id=row["recording_id"],
            speaker_id=row["speaker_id"],
            language=row["language"],
            audio=AudioSource.of(row),
            offset_s=row["offset_s"],
            duration_s=row["duration_s"],
            words=row["text"].split(),
        )


@dataclass(frozen=True, slots=True)
class Alignment:
    """Word times of one utterance, as the aligner gave them; `quality`: how well the words fit the audio, or None."""

    segment_id: str
    words: list[WordInterval]
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one utterance has no alignment: a row for the rejected file."""

    segment_id: str
    reason: str
    detail: str


class Aligner(Protocol):
    """One way to find word times. `name` is the program with its version; it is kept in every row.

    `align` yields one result for every utterance, in their order. They come ordered by recording and offset, so that
    audio can be read front to back. EarmarkError where the aligner as a whole cannot work.
    """

    name: str

    def align(self, utterances: Iterable[Utterance]) -> Iterator[Alignment | Failure]: ...
