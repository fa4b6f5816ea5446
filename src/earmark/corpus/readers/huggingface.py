"""Data sets as `datasets` saves them (Arrow files) and as the Hugging Face hub keeps them (Parquet files)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from earmark.corpus.readers.tables import accepted_spellings
from earmark.corpus.records import BadEntry, Entry, EntryError, recording_id_of
from earmark.errors import InputError
from earmark.packed_audio import ColumnName, PackedFile, audio_column, field_names

# What data sets on the hub call these columns, after the spellings that every manifest may use.
HUB_COLUMNS = {
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
    "speaker_id": ("client_id",),
    "language": ("locale",),
}
_IDS = ("segment_id", "recording_id", "speaker_id", "channel")
_SECONDS = ("offset_s", "duration_s")
_WITHOUT_VALUE = {"segment_id": "bad_id", "audio": "missing_audio", "text": "no_text"}  # rejected for
_TEXT = (pa.string(), pa.large_string(), pa.string_view(), pa.null())  # null: a column without any value
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
# datasets and the hub write train-00000-of-00002.parquet; people write train.parquet.
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?|(train|dev|valid|validation|test)")


def read(manifest: Path, *, columns: Mapping[str, str]) -> Iterator[Entry | BadEntry]:
    """Entries of a data set that `save_to_disk` wrote, of a Parquet file, or of all Parquet files under a folder.

    The audio column is a struct{bytes, path}, as an `Audio` feature is stored, or a path. Where there is no column of
    ids, a segment is called after its file and row. No audio is read here. InputError for a file that is missing, not
    whole or neither Parquet nor Arrow, and for a column that is missing or of another type.
    """
    root = manifest if manifest.is_dir() else manifest.parent
    for path, split in _files(manifest):
        name = recording_id_of(str(path.relative_to(root).with_suffix("")))
        yield from _entries(PackedFile(path.absolute()), name, split, columns)


def _files(manifest: Path) -> list[tuple[Path, str | None]]:
    """The data files in the data set's order, each with its split."""
    if not manifest.is_dir():
        return [(manifest, _split_of(manifest))]
    if (manifest / "dataset_dict.json").exists():
        splits = _json_list(manifest / "dataset_dict.json", "splits")
        return [(path, split) for split in map(str, splits) for path, _ in _saved(manifest / split)]
    if (manifest / "state.json").exists():
        return _saved(manifest)
    files = sorted(path for path in manifest.rglob("*.parquet") if path.is_file())
    if not files:
        raise InputError(
            f"{manifest}: holds no state.json or dataset_dict.json, as save_to_disk writes, and no .parquet file; set "
            "corpus.manifest to the folder or file of a data set"
        )
    return [(path, _split_of(path)) for path in files]


def _saved(folder: Path) -> list[tuple[Path, str | None]]:
    state = folder / "state.json"
    files = _json_list(state, "_data_files")
    if _json(state).get("_indices_files"):
        raise InputError(f"{state}: the rows are a selection of the files'; call flatten_indices() and save it again")
    if not all(isinstance(file, dict) and isinstance(file.get("filename"), str) for file in files):
        raise InputError(f"{state}: _data_files is not a list of files; save the data set again")
    if outside := next((file["filename"] for file in files if Path(file["filename"]).name != file["filename"]), None):
        raise InputError(f"{state}: _data_files names {outside!r}, which lies elsewhere; save the data set again")
    split = _json(state).get("_split")
    return [(folder / file["filename"], str(split) if split else None) for file in files]


def _json_list(path: Path, key: str) -> list[Any]:
    value = _json(path).get(key)
    if not isinstance(value, list):
        raise InputError(f"{path}: holds no list {key!r}; save the data set again")
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the whole data set") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); save the data set again") from None
    return value if isinstance(value, dict) else {}


def _split_of(path: Path) -> str | None:
    match = _SPLIT.fullmatch(path.stem)
    return match[1] or match[2] if match else None


def _entries(file: PackedFile, name: str, split: str | None, columns: Mapping[str, str]) -> Iterator[Entry | BadEntry]:
    theirs = _columns_of(file, columns)
    labels = {ours: names for ours, column in theirs.items() if (names := _class_labels(file.schema, column))}
    for ours, column in theirs.items():
        _check_type(file, ours, column, ours in labels)
    for row, packed, values in _rows(file, theirs):
        source = f"{file.path}, row {row}"
        segment_id = f"{name}-{row:08d}"
        try:
            fields = {ours: _plain(ours, value, labels) for ours, value in values.items()}
            segment_id = fields.setdefault("segment_id", segment_id) or ""
            fields.setdefault("split", split)
            if packed:  # a recording of its own, whatever path stands beside the bytes
                fields |= {"audio": str(file.path), "audio_row": row}
                fields["recording_id"] = fields.get("recording_id") or segment_id
            for ours, reason in _WITHOUT_VALUE.items():
                if fields[ours] is None:
                    raise EntryError(reason, f"the column {theirs[ours]} is null")
        except EntryError as error:
            yield error.at(source, segment_id)
            continue
        yield Entry(source, **fields)


def _rows(file: PackedFile, theirs: Mapping[str, str]) -> Iterator[tuple[int, bool, dict[str, Any]]]:
    """(row, whether it packs its audio, the values under our names); `audio` is the path, and text is undecoded."""
    names: dict[str, ColumnName] = {ours: (column,) for ours, column in theirs.items()}
    audio = theirs["audio"]
    fields = field_names(file.schema.field(audio).type)
    if fields:
        del names["audio"]
    if "path" in fields:
        names["audio"] = (audio, "path")
    for group, (start, end) in enumerate(pairwise(file.row_groups)):
        unpacked = file.null_count(group, (audio, "bytes")) if "bytes" in fields else end - start
        # The bytes themselves are looked at only where the file does not say whether they are all there or all missing.
        look = unpacked not in (0, end - start)
        for first, arrays in file.columns(group, [*names.values(), *([(audio, "bytes")] if look else [])]):
            packed = arrays.pop().is_valid().to_pylist() if look else [unpacked == 0] * len(arrays[0])
            cells = zip(*(array.to_pylist() for array in arrays), strict=True)
            for row, (packs, values) in enumerate(zip(packed, cells, strict=True), start=first):
                yield row, packs, {"audio": None, **dict(zip(names, values, strict=True))}


def _plain(ours: str, value: Any, labels: Mapping[str, list[str]]) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise EntryError("not_utf8", f"byte {error.start} of {ours} is not UTF-8") from None
    if isinstance(value, int) and ours in labels:
        return labels[ours][value] if 0 <= value < len(labels[ours]) else None
    return str(value) if isinstance(value, int) else value


def _columns_of(file: PackedFile, columns: Mapping[str, str]) -> dict[str, str]:
    """Our column -> the file's, for those that it has."""
    there = file.schema.names
    theirs = {}
    for ours, spellings in accepted_spellings(columns).items():
        accepted = spellings if ours in columns else (*spellings, *HUB_COLUMNS.get(ours, ()))
        found = [spelling for spelling in accepted if spelling in there]
        if found:
            theirs[ours] = found[0]
        elif ours in columns or ours in ("audio", "text"):
            raise InputError(
                f"{file.path}: lacks the column {' or '.join(accepted)}; it has: {', '.join(there)}; name yours in "
                f"corpus.columns, as {{{ours}: ...}}"
            )
    if repeated := [column for column in theirs.values() if there.count(column) > 1]:
        raise InputError(f"{file.path}: has the column {repeated[0]} more than once; rename one of them")
    return theirs


def _class_labels(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that a `ClassLabel` feature's numbers stand for (datasets keeps its features in the schema)."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _check_type(file: PackedFile, ours: str, column: str, labelled: bool) -> None:
    type = file.schema.field(column).type
    fields = {field.name: field.type for field in type} if field_names(type) else {}
    if pa.types.is_dictionary(type):
        type = type.value_type
    if ours == "audio":
        packs = {"bytes", "path"} & set(fields)
        good = type in _TEXT or (
            packs and fields.get("bytes", pa.binary()) in _BYTES and fields.get("path", pa.string()) in _TEXT
        )
        expected = "a struct of bytes and path (cast_column(..., Audio(decode=False)) makes one), or paths"
    elif ours in _SECONDS:
        good = type in _TEXT or pa.types.is_integer(type) or pa.types.is_floating(type)
        expected = "numbers"
    else:
        good = type in _TEXT or (pa.types.is_integer(type) and (labelled or ours in _IDS))
        expected = "text or whole numbers" if ours in _IDS else "text"
    if not good:
        raise InputError(
            f"{file.path}: the column {column} is {str(type)[:100]}; expected {expected} as {ours}; convert it, or "
            "name another column in corpus.columns"
        )
    if "bytes" in fields and audio_column(file.schema) != column:
        raise InputError(
            f"{file.path}: more than one column packs audio, and {column} is not called audio; rename it, or leave the "
            "others out"
        )
