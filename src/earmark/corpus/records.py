"""What every corpus reader yields, and the checks that turn it into a segment. No audio is opened here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePath

from earmark import text
from earmark.corpus.languages import language_code
from earmark.corpus.transcripts import transcript_problem, without_punctuation_tags

AUDIO_SUFFIXES = frozenset(
    ".aac .aif .aiff .au .caf .flac .m4a .mp3 .mp4 .oga .ogg .opus .raw .sph .w64 .wav .webm .wma".split()  # noqa: SIM905
)
LONGEST_S = 1e7  # of a recording: four months
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """One transcribed span as a corpus states it, unchecked. `source` says where it stands: `file:line` or the like.

    Times are numbers or their spelling, in seconds; None or "" where the corpus states none.
    """

    source: str
    segment_id: str
    audio: str  # a path, absolute or relative to the audio root
    text: str
    recording_id: str | None = None
    speaker_id: str | None = None
    offset_s: float | str | None = None
    duration_s: float | str | None = None
    language: str | None = None
    split: str | None = None
    channel: int | str | None = None
    audio_row: int | None = None  # where `audio` is a file that packs many recordings


@dataclass(frozen=True, slots=True)
class Segment:
    """One good entry. `duration_s` None means "to the end of the recording".

    Where the corpus names no speaker, `speaker_stated` is False and the recording's id stands in for the speaker's.
    """

    segment_id: str
    recording_id: str
    speaker_id: str
    audio_path: str
    audio_row: int | None
    channel: int | None
    offset_s: float
    duration_s: float | None
    text: str
    language: str
    split: str | None
    source: str
    speaker_stated: bool


@dataclass(frozen=True, slots=True)
class BadEntry:
    """One entry that is no segment: what to write into the rejected rows. `detail` begins with where it stands."""

    id: str
    reason: str
    detail: str


class EntryError(Exception):
    """Why one entry is no segment. Never leaves the readers."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail

    def at(self, source: str, segment_id: str = "") -> BadEntry:
        return BadEntry(segment_id, self.reason, f"{source}: {self.detail}")


def checked(entry: Entry, root: Path, language: str) -> Segment | BadEntry:
    """`entry` as a Segment with an absolute audio path, or why it is none.

    Names of speakers and recordings that cannot be ids are changed until they can, each into one of its own.
    Reasons: bad_id, missing_audio, no_text, garbage_tag, unknown_tag, bad_time, bad_channel.
    """
    try:
        return _segment(entry, root, language)
    except EntryError as error:
        return error.at(entry.source, entry.segment_id)


def _segment(entry: Entry, root: Path, language: str) -> Segment:
    if why := text.id_problem(entry.segment_id):
        raise EntryError("bad_id", f"segment_id {entry.segment_id[:80]!r} {why}")
    if not entry.audio or "\0" in entry.audio:
        raise EntryError("missing_audio", "the audio path is empty or holds a NUL")
    if problem := transcript_problem(entry.text):
        raise EntryError(*problem)
    if not (spoken := text.normalise(without_punctuation_tags(entry.text))):
        raise EntryError("no_text", "the text holds no word")
    audio_path = _absolute(root, entry.audio)
    recording_id = _usable_id(entry.recording_id) if entry.recording_id else recording_id_of(entry.audio)
    offset_s = _seconds("offset_s", entry.offset_s)
    duration_s = _seconds("duration_s", entry.duration_s)
    if duration_s == 0:
        raise EntryError("bad_time", "duration_s is 0")
    return Segment(
        segment_id=entry.segment_id,
        recording_id=recording_id,
        speaker_id=_usable_id(entry.speaker_id) if entry.speaker_id else recording_id,
        audio_path=audio_path,
        audio_row=entry.audio_row,
        channel=_channel(entry.channel),
        offset_s=offset_s or 0.0,
        duration_s=duration_s,
        text=spoken,
        language=language_code(entry.language) if entry.language else language,
        split=entry.split or None,
        source=entry.source,
        speaker_stated=bool(entry.speaker_id),
    )


@lru_cache  # segments of one recording mostly follow each other
def recording_id_of(audio: str) -> str:
    """The id of a recording that the corpus names by its audio path alone; a suffix of audio does not count.

    `a.wav` -> `a`; any other path gets a digest of itself, as `x/y.wav` and `x-y.wav` are two recordings:
    `x/y.wav` -> `x-y-8c9048ad`; `/data/my talk.wav` -> `my-talk-` and a digest.
    """
    path = PurePath(audio)
    path = path.with_suffix("") if path.suffix.lower() in AUDIO_SUFFIXES else path
    name = str(path)
    if text.id_problem(name) is None:
        return name
    digest = blake2b(name.encode(), digest_size=4).hexdigest()
    nested = f"{name.replace('/', '-')}-{digest}"
    if ".." not in path.parts and text.id_problem(nested) is None:
        return nested
    return _slug(path.name, digest)


@lru_cache
def _usable_id(name: str) -> str:
    """A speaker's or recording's name as an id: `John Smith` -> `John-Smith-` and a digest."""
    if text.id_problem(name) is None:
        return name
    return _slug(name, blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest())


def _slug(name: str, digest: str) -> str:
    usable = re.sub(r"[^\w.@+=-]", "-", name).strip(".@+=-") or "unnamed"
    room = text.ID_MAX_BYTES - len(digest) - 1
    return f"{usable.encode()[:room].decode(errors='ignore')}-{digest}"


def duration_between(start_s: float | str, end_s: float | str) -> float:
    """Seconds from `start_s` to `end_s`, numbers or their spelling. EntryError bad_time, also if they are reversed."""
    start, end = _seconds("start", start_s), _seconds("end", end_s)
    if start is None or end is None:
        raise EntryError("bad_time", "the start or the end is not stated")
    if end <= start:
        raise EntryError("bad_time", f"the end {end_s} is not after the start {start_s}")
    return round(end - start, 9)  # 167.52 - 159.0 is 8.52 to a reader of the table too


@lru_cache
def _absolute(root: Path, audio: str) -> str:
    path = str(root / audio)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise EntryError("missing_audio", f"the audio path {path!r} is not UTF-8; rename the file or folder") from None
    return path


def _seconds(name: str, value: float | str | None) -> float | None:
    if value is None or value == "":
        return None
    # float() also takes "1_0", "nan" and digits of every script, which damaged files hold.
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise EntryError("bad_time", f"{name} {value[:40]!r} is no number")
    if not 0 <= (seconds := value if isinstance(value, int) else float(value)) <= LONGEST_S:
        raise EntryError("bad_time", f"{name} {str(value)[:40]!r} is negative, not finite or over {LONGEST_S:g} s")
    return float(seconds)


def _channel(value: int | str | None) -> int | None:
    if value is None or value == "":
        return None
    channel = int(value) if isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 5) else -1
    if not 0 <= channel < 1024:
        raise EntryError("bad_channel", f"channel {str(value)[:40]!r} is no number from 0")
    return channel
