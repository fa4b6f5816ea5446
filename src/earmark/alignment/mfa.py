"""The Montreal Forced Aligner as an aligner: one run for a shard, a second one for what did not align.

It cannot be installed with pip; envs/mfa.yaml makes it a conda environment of its own. Its exit status says little:
with six of eight utterances unaligned it is 0, with one unreadable file it is 1 and nothing is written. So what came
back is counted, utterance by utterance.
"""

from __future__ import annotations

import csv
import logging
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from earmark.alignment.aligner import Alignment, Failure, Utterance
from earmark.alignment.intervals import WordInterval
from earmark.alignment.mfa_corpus import move_utterances, textgrid_path, write_corpus, write_dictionary
from earmark.alignment.mfa_program import (
    Outcome,
    align_command,
    exit_on_sigterm,
    find_model,
    find_program,
    mfa_version,
    run,
)
from earmark.alignment.textgrid import parse_textgrid, word_intervals
from earmark.artifacts import atomic_path
from earmark.errors import EarmarkError, InputError

_WRONG_USAGE = 2  # exit status where click refuses the command line: no second run can help


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of `mfa align`: the folder it had to itself, how it ended, and the words of what it aligned."""

    folder: Path
    outcome: Outcome
    aligned: dict[str, list[WordInterval]]


class MfaAligner:
    """MFA 3 with a model and a dictionary of the user's.

    Words have no score and alignments no quality: MFA's log-likelihoods are those of an utterance under Gaussian
    mixtures, whose size depends on the model and the recording. Words that it has no pronunciation for, and their
    neighbours, are not trusted. Speakers stay whole, as MFA adapts to each, though it then uses a core a speaker.

    ConfigError where the program or a model is missing; EarmarkError where the program does not work.
    """

    def __init__(
        self,
        program: str,
        acoustic_model: str,
        dictionary: str,
        g2p_model: str | None,
        beam: int,
        retry_beam: int,
        threads: int,
        keep_textgrids: Path | None,
    ):
        self.program = find_program(program)
        self.acoustic_model = find_model("acoustic", acoustic_model)
        self.dictionary = find_model("dictionary", dictionary)
        self.g2p_model = find_model("g2p", g2p_model) if g2p_model else None
        self.beam = beam
        self.retry_beam = retry_beam
        self.threads = threads
        self.keep_textgrids = keep_textgrids
        with _scratch() as scratch:
            self.name = f"mfa-{mfa_version(self.program, scratch)}"

    def align(self, utterances: Iterable[Utterance]) -> Iterator[Alignment | Failure]:
        """Align all utterances in one run, then once more those that did not align, with wider beams.

        Failures have the reason not_aligned. EarmarkError where both runs end without a single alignment for another
        reason than that none was found.
        """
        given = list(utterances)
        with _scratch() as scratch:
            runs = self._runs(given, scratch) if given else []
            if self.keep_textgrids:
                _pack_textgrids(runs, given, self.keep_textgrids)
        aligned = {segment_id: words for done in runs for segment_id, words in done.aligned.items()}
        for utterance in given:
            if utterance.segment_id in aligned:
                yield Alignment(utterance.segment_id, aligned[utterance.segment_id])
            else:
                yield Failure(utterance.segment_id, "not_aligned", self._why_not(runs[-1].outcome))

    def _runs(self, utterances: Sequence[Utterance], scratch: Path) -> list[_Run]:
        # MFA takes the dialect, for which a model may have rules, from the dictionary's name.
        dictionary = scratch / "dictionary" / f"{self.dictionary.stem}.dict"
        unknown = write_dictionary(self.dictionary, {w for each in utterances for w in each.words}, dictionary)
        if unknown:
            logging.warning(
                "%d words are not in the dictionary %s, for instance %s; %s",
                len(unknown), self.dictionary, ", ".join(sorted(unknown)[:5]),
                "the g2p model pronounces them" if self.g2p_model else "their times are not trusted",
            )  # fmt: skip
        corpus = _corpus(scratch / "first")
        write_corpus(utterances, corpus)
        first = self._run(utterances, dictionary, corpus, self.beam, self.retry_beam)
        missing = [utterance for utterance in utterances if utterance.segment_id not in first.aligned]
        logging.info("%d of %d segments aligned", len(utterances) - len(missing), len(utterances))
        if not missing:
            return [first]
        again = _corpus(scratch / "again")
        move_utterances(missing, corpus, again)
        second = self._run(missing, dictionary, again, self.retry_beam, 4 * self.retry_beam)
        logging.info("%d of %d segments aligned with wider beams", len(second.aligned), len(missing))
        if not first.aligned and not second.aligned and not second.outcome.aligned_nothing:
            raise EarmarkError(f"`{self.program} align` gave no alignment, twice: {second.outcome.reason}")
        return [first, second]

    def _run(self, utterances: Sequence[Utterance], dictionary: Path, corpus: Path, beam: int, retry_beam: int) -> _Run:
        """Align a corpus folder; MFA keeps its own files beside it, and its results."""
        speakers = len({utterance.speaker_id for utterance in utterances})
        if speakers < self.threads:
            logging.info("MFA uses a core a speaker: %d of align.threads %d", speakers, self.threads)
        folder = corpus.parent
        command = align_command(
            self.program, corpus, dictionary, self.acoustic_model, folder / "textgrids",
            g2p_model=self.g2p_model, beam=beam, retry_beam=retry_beam, jobs=min(self.threads, speakers),
        )  # fmt: skip
        outcome = run(command, root=folder / "mfa", folder=folder)
        if outcome.status == _WRONG_USAGE:
            raise EarmarkError(f"`{self.program} align` was refused: {outcome.reason}")
        if outcome.status:
            logging.warning("mfa align ended with status %d; what it wrote until then is used", outcome.status)
        return _Run(folder, outcome, _read_results(folder / "textgrids", utterances))

    def _why_not(self, outcome: Outcome) -> str:
        if outcome.status and not outcome.aligned_nothing:
            return f"MFA ended before it wrote a result: {outcome.reason}"
        return (
            f"MFA found no way through the audio with beams {self.beam} and {self.retry_beam}, nor with "
            f"{self.retry_beam} and {4 * self.retry_beam}: are other words spoken?"
        )


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this job's own on local disk: MFA's database does not survive two runs in one MFA_ROOT_DIR."""
    with exit_on_sigterm():
        try:
            folder = tempfile.TemporaryDirectory(prefix="earmark_mfa_", dir=os.environ.get("SLURM_TMPDIR"))
        except OSError as error:
            raise EarmarkError(f"no scratch folder can be made ({error}); set SLURM_TMPDIR or TMPDIR") from None
        with folder:
            yield Path(folder.name)


def _corpus(folder: Path) -> Path:
    """The corpus folder of a run. MFA names its database after it and refuses one whose path begins like its root's."""
    return folder / f"corpus_{folder.parent.name}_{folder.name}"


def _read_results(folder: Path, utterances: Iterable[Utterance]) -> dict[str, list[WordInterval]]:
    """The words of every utterance of which a whole TextGrid came back, by segment."""
    unlikely = _without_likelihood(folder / "alignment_analysis.csv")
    results = {}
    for utterance in utterances:
        path = textgrid_path(folder, utterance)
        if not path.is_file() or (utterance.speaker_id, utterance.segment_id) in unlikely:
            continue
        try:
            tiers = parse_textgrid(path.read_bytes(), path.name)
            for tier in tiers:
                _ = tier.intervals  # all of them are read, or a file cut off in its phones would pass for whole
            words = word_intervals(tiers, utterance.speaker_id, path.name, spoken=utterance.words)
            results[utterance.segment_id] = words
        except InputError as error:  # MFA was killed while it wrote
            logging.warning("not used: %s", error)
    return results


def _without_likelihood(path: Path) -> set[tuple[str | None, str | None]]:
    """(speaker, file) of the rows of alignment_analysis.csv that say that MFA could not align.

    Source: corpus/base.py (analyze_alignments); a file that MFA did not come to write says nothing.
    """
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {(row.get("speaker"), row.get("file")) for row in rows if row.get("overall_log_likelihood") == ""}


def _pack_textgrids(runs: Iterable[_Run], utterances: Iterable[Utterance], path: Path) -> None:
    """Pack the TextGrids into an uncompressed tar, {segment}.TextGrid in the order of the corpus."""
    folders = {segment_id: done.folder / "textgrids" for done in runs for segment_id in done.aligned}
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as archive:
        for utterance in utterances:
            if folder := folders.get(utterance.segment_id):
                member = tarfile.TarInfo(f"{utterance.segment_id}.TextGrid")
                textgrid = textgrid_path(folder, utterance)
                member.size = textgrid.stat().st_size
                with textgrid.open("rb") as file:
                    archive.addfile(member, file)
