"""The aligner for those who have aligned already: it reads their TextGrids."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq

from earmark.alignment.aligner import Alignment, Failure, Utterance
from earmark.alignment.intervals import WordInterval, clip_intervals
from earmark.alignment.textgrid import IntervalTier, parse_textgrid, word_intervals, words_tier
from earmark.errors import InputError

SAME_LENGTH_S = 0.05  # audio is cut, and its length rounded, in many ways; two recordings are seldom so close
HELD_ROW_GROUPS = 16  # of an eighth of a megabyte, or of one file that is larger


class TextGridAligner:
    """Word times out of a shard's packed TextGrids (`pack_textgrids`).

    A segment's own TextGrid counts, or else its recording's. `offset` says what times count from:

    - segment: the segment's start.
    - recording: the recording's start. Of the file's words, those count whose middle lies in the segment.
    - auto: the segment's start where the file is named after the segment and its words tier goes from 0 to the
      segment's duration, within SAME_LENGTH_S; otherwise the recording's where the tier covers all of the segment's
      place in it. Where neither fits, the utterance fails (offset_unclear).

    Fails besides: no_textgrid, bad_textgrid. Memory: the names of the shard's TextGrids, HELD_ROW_GROUPS row groups,
    and the words of one file.
    """

    name = "textgrid"

    def __init__(self, textgrids: Path, *, offset: str):
        self.textgrids = textgrids
        self.offset = offset

    def align(self, utterances: Iterable[Utterance]) -> Iterator[Alignment | Failure]:
        counted_from: Counter[str] = Counter()
        with pq.ParquetFile(self.textgrids) as file:
            packed = _Packed(file)
            for utterance in utterances:
                stem = next((stem for stem in (utterance.segment_id, utterance.recording_id) if stem in packed), None)
                if stem is None:
                    detail = f"no TextGrid is named after it, nor after its recording {utterance.recording_id}"
                    yield Failure(utterance.segment_id, "no_textgrid", detail)
                    continue
                try:
                    where, tiers = packed.tiers(stem)
                    _, tier = words_tier(tiers, utterance.speaker_id, where)
                    start = self.offset if self.offset != "auto" else _times_start(tier, utterance, stem)
                    if start is None:
                        yield Failure(utterance.segment_id, "offset_unclear", _why_unclear(tier, utterance, where))
                        continue
                    words = _words(tiers, utterance, where, from_recording=start == "recording")
                except InputError as error:
                    yield Failure(utterance.segment_id, "bad_textgrid", str(error))
                    continue
                counted_from[start] += 1
                yield Alignment(utterance.segment_id, words)
        logging.info(
            "times were counted from the start of the segment in %d segments, of the recording in %d",
            counted_from["segment"], counted_from["recording"],
        )  # fmt: skip


def _times_start(tier: IntervalTier, utterance: Utterance, stem: str) -> str | None:
    own = stem == utterance.segment_id
    if own and abs(tier.start_s) <= SAME_LENGTH_S and abs(tier.end_s - utterance.duration_s) <= SAME_LENGTH_S:
        return "segment"
    end_s = utterance.offset_s + utterance.duration_s
    if tier.start_s <= utterance.offset_s + SAME_LENGTH_S and end_s <= tier.end_s + SAME_LENGTH_S:
        return "recording"
    return None


def _why_unclear(tier: IntervalTier, utterance: Utterance, where: str) -> str:
    end_s = utterance.offset_s + utterance.duration_s
    return (
        f"{where} goes from {tier.start_s:.3f} to {tier.end_s:.3f} s, which is neither the segment's 0 to "
        f"{utterance.duration_s:.3f} s nor covers its {utterance.offset_s:.3f} to {end_s:.3f} s of the recording; set "
        "align.textgrid.offset"
    )


def _words(tiers: list[IntervalTier], utterance: Utterance, where: str, *, from_recording: bool) -> list[WordInterval]:
    speaker_id, spoken = utterance.speaker_id, utterance.words
    if not from_recording:
        return clip_intervals(word_intervals(tiers, speaker_id, where, spoken=spoken), utterance.duration_s)
    offset_s = utterance.offset_s
    span_s = (offset_s, offset_s + utterance.duration_s)
    words = word_intervals(tiers, speaker_id, where, spoken=spoken, span_s=span_s)
    moved = [replace(word, start_s=word.start_s - offset_s, end_s=word.end_s - offset_s) for word in words]
    return clip_intervals(moved, utterance.duration_s)


class _Packed:
    """The TextGrids of a shard by the id they are named after."""

    def __init__(self, file: pq.ParquetFile):
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._first = [0, *accumulate(groups)]
        stems = file.read(columns=["stem"]).column("stem").to_pylist()
        self._rows = {stem: row for row, stem in enumerate(stems)}
        self._row_group = lru_cache(HELD_ROW_GROUPS)(
            lambda group: file.read_row_group(group, ["name", "data"], use_threads=False)
        )
        self._parsed: tuple[str, str, list[IntervalTier]] | None = None  # the last one asked for

    def __contains__(self, stem: str) -> bool:
        return stem in self._rows

    def tiers(self, stem: str) -> tuple[str, list[IntervalTier]]:
        """Where they stand, and the tiers. InputError where it cannot be parsed."""
        if self._parsed is None or self._parsed[0] != stem:
            row = self._rows[stem]
            group = bisect_right(self._first, row) - 1
            rows = self._row_group(group)
            place = row - self._first[group]
            where = rows.column("name")[place].as_py()
            self._parsed = stem, where, parse_textgrid(rows.column("data")[place].as_py(), where)
        return self._parsed[1], self._parsed[2]
