"""What `mfa align` reads: a folder of recordings with their transcripts, and a dictionary cut down to their words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import soundfile

from earmark.alignment.aligner import Utterance
from earmark.audio import SAMPLE_RATE, read_spans
from earmark.errors import AudioError, EarmarkError, InputError

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018", "'"))  # as in MFA's data.py: DEFAULT_CLITIC_MARKERS
_OPENING_BRACKETS = tuple("<[{(\uff1c")  # of words that are no words: <unk>, [laughter]


def write_corpus(utterances: Sequence[Utterance], folder: Path) -> None:
    """Write every utterance as {speaker}/{segment}.wav (16-bit, SAMPLE_RATE, mono) and .lab (its words).

    The folder is the speaker to MFA. Utterances are ordered by recording and offset. AudioError where a recording
    cannot be read or ends before an utterance; EarmarkError where the folder cannot be written to.
    """
    for audio, group in groupby(utterances, key=lambda utterance: utterance.audio):
        spoken = list(group)
        spans = ((utterance.offset_s, utterance.offset_s + utterance.duration_s) for utterance in spoken)
        for utterance, samples in zip(spoken, read_spans(audio, spans), strict=True):
            if not len(samples):
                raise AudioError(f"{audio}: ends before segment {utterance.segment_id} at {utterance.offset_s:.3f} s")
            try:
                wav = wav_path(folder, utterance)
                wav.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(wav, samples, SAMPLE_RATE, subtype="PCM_16")
                wav.with_name(f"{utterance.segment_id}.lab").write_text(" ".join(utterance.words), encoding="utf-8")
            except (OSError, soundfile.LibsndfileError) as error:
                raise EarmarkError(
                    f"{folder}: cannot write segment {utterance.segment_id} there ({error}); point TMPDIR at a disk "
                    "with room for the shard, 120 MB an hour of speech and as much again"
                ) from None


def move_utterances(utterances: Iterable[Utterance], folder: Path, target: Path) -> None:
    """Move some of the utterances that `write_corpus` wrote to `folder` into another corpus folder."""
    for utterance in utterances:
        wav, moved = wav_path(folder, utterance), wav_path(target, utterance)
        moved.parent.mkdir(parents=True, exist_ok=True)
        lab = f"{utterance.segment_id}.lab"
        wav.rename(moved)
        wav.with_name(lab).rename(moved.with_name(lab))


def wav_path(folder: Path, utterance: Utterance) -> Path:
    return folder / utterance.speaker_id / f"{utterance.segment_id}.wav"


def textgrid_path(folder: Path, utterance: Utterance) -> Path:
    """Where `mfa align` writes the result for an utterance, in its output folder."""
    return folder / utterance.speaker_id / f"{utterance.segment_id}.TextGrid"


def write_dictionary(source: Path, words: set[str], target: Path) -> set[str]:
    """Copy the dictionary's lines for `words` (normalised); return the words that it has none for.

    MFA reads and indexes all of a dictionary at each start: 76 s for 126,000 words, 21 s for those of a shard. Lines
    are kept as they are; only where MFA would fold case differently ("Straße" is "strasse" here) the word is spelled
    our way. Also kept are the parts of words with an apostrophe, at which MFA cuts a word that it does not know (dog's:
    dog, 's), and what is in brackets (<unk>). Where no word is found, all lines are. InputError for no dictionary.

    Source: MFA's utils.py (parse_dictionary_file) and tokenization/simple.py (SplitWordsFunction).
    """
    wanted = words | {piece for word in words if "'" in word for piece in _around_apostrophes(word)}
    found: set[str] = set()
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read as a UTF-8 pronunciation dictionary ({error})") from None
    kept = []
    for number, line in enumerate(lines, start=1):
        spelling, *pronunciation = line.split(maxsplit=1) or [""]
        read, word = (spelling.lower(),) * 2 if spelling.isascii() else (_as_mfa_reads(spelling), _folded(spelling))
        if word in wanted or word.startswith(_OPENING_BRACKETS):
            if not pronunciation:
                raise InputError(f"{source}:{number}: {spelling!r} has no pronunciation; mend or delete this line")
            found.add(word)
            kept.append(line if read == word else f"{word}\t{pronunciation[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(kept if wanted & found else lines) + "\n", encoding="utf-8")
    return words - found


def _as_mfa_reads(spelling: str) -> str:
    return unicodedata.normalize("NFKC", spelling).lower().translate(_APOSTROPHES)


def _folded(spelling: str) -> str:
    folded = unicodedata.normalize("NFKC", spelling).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES)


def _around_apostrophes(word: str) -> set[str]:
    """The words and clitics that MFA may cut a word into: dog's -> dog, 's; l'eau -> l', eau."""
    edges = [0, *(place for place, letter in enumerate(word) if letter == "'"), len(word)]
    pieces = {word[start:end] for start in edges for end in edges if start < end}
    return pieces | {piece.strip("'") for piece in pieces} | {f"{piece}'" for piece in pieces}
