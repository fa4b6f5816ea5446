"""The files of a corpus whose change makes the stage corpus run again. No audio, and nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

_KALDI = ("wav.scp", "text", "segments", "utt2spk")
_PATTERNS = {
    "librispeech": ("*.trans.txt",),
    "lhotse": ("*.jsonl", "*.jsonl.gz"),
    "huggingface": ("*.parquet", "*.arrow", "*.json"),
}


def input_files(format: str, manifest: Path) -> list[Path]:
    """The manifest where it is a file, or else what the reader of `format` reads in that folder.

    A folder's own time of change does not tell that a file in it was edited. A folder that is missing, or holds nothing
    of the kind, is returned itself: the reader says what is wrong with it.
    """
    if not manifest.is_dir():
        return [manifest]
    if format == "kaldi":
        found = [manifest / name for name in _KALDI if (manifest / name).is_file()]
    else:
        found = sorted(path for pattern in _PATTERNS.get(format, ()) for path in manifest.rglob(pattern))
    return found or [manifest]
