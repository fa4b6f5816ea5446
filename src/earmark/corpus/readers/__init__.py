"""Corpus readers, one module a format. Each streams Entry and BadEntry and never stops at a bad row.

What is wrong with one row is a BadEntry; what makes the whole corpus unusable (no such file, no such column, a JSON
document that breaks off) is an InputError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from earmark.corpus.readers import gigaspeech, huggingface, kaldi, lhotse, librispeech, tables
from earmark.corpus.records import BadEntry, Entry, Segment, checked
from earmark.errors import InputError

Reader = Callable[..., Iterator[Entry | BadEntry]]

READERS: dict[str, Reader] = {
    "tsv": tables.read_tsv,
    "jsonl": tables.read_jsonl,
    "gigaspeech": gigaspeech.read,
    "librispeech": librispeech.read,
    "kaldi": kaldi.read,
    "lhotse": lhotse.read,
    "huggingface": huggingface.read,
}
NAMES_COLUMNS = ("tsv", "jsonl", "huggingface")  # the formats that take corpus.columns


def read_corpus(
    format: str,
    manifest: Path,
    *,
    audio_root: Path | None,
    columns: Mapping[str, str],
    subset: str | None,
    language: str,
) -> Iterator[Segment | BadEntry]:
    """Yield every entry of the corpus at `manifest` (a file or a folder, by format) as a Segment or a BadEntry.

    Relative audio paths start at `audio_root`, or else at the manifest's folder. Ids may repeat: see `sharding`.
    """
    if not manifest.exists():
        raise InputError(f"{manifest}: there is no such file or folder; set corpus.manifest")
    options: dict[str, object] = {}
    if format in NAMES_COLUMNS:
        options["columns"] = columns
    elif columns:
        raise InputError(
            f"corpus.columns is for {', '.join(NAMES_COLUMNS)}; format {format} names its own: set it to {{}}"
        )
    if format == "gigaspeech":
        options["subset"] = subset
    elif subset is not None:
        raise InputError(f"corpus.subset is for gigaspeech; set it to null for format {format}")
    root = (audio_root or (manifest if manifest.is_dir() else manifest.parent)).resolve()
    for entry in READERS[format](manifest, **options):
        yield entry if isinstance(entry, BadEntry) else checked(entry, root, language)
