"""The TextGrids in a folder or an archive, one after the other; names in archives are never used as paths."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn

from earmark.errors import InputError

SUFFIX = ".textgrid"  # in any case, as the next
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_BYTES = 64_000_000  # of one TextGrid: ten hours of words and phones take some 30 MB


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One TextGrid: its bytes, or (reason, detail) why they were not read."""

    name: str  # path inside the source
    data: bytes
    problem: tuple[str, str] | None = None


def source_files(source: Path) -> Iterator[SourceFile]:
    """Yield every file named *.TextGrid of a .tar, .tar.gz, .tgz or .zip, or of a folder: by name, and those in its
    subfolders and archives.

    With a problem: not_a_file (a link or a device), too_large (over MAX_BYTES), unreadable. InputError where the source
    is none of these, cannot be read, or breaks off.
    """
    name = source.name.lower()
    try:
        if source.is_dir():
            yield from _of_folder(source)
        elif not source.exists():
            raise InputError(f"{source}: there is no such file or folder; set align.textgrid.path")
        elif name.endswith(".zip"):
            yield from _of_zip(source)
        elif name.endswith((".tar.gz", ".tgz")):
            with gzip.open(source) as unzipped:
                yield from _of_tar(_LastRead(unzipped))
        elif name.endswith(".tar"):
            with source.open("rb") as file:
                yield from _of_tar(_LastRead(file))
        else:
            raise InputError(f"{source}: expected a folder, .tar, .tar.gz, .tgz or .zip; set align.textgrid.path")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{source}: not a whole archive ({error}); copy or pack it again") from None
    except (OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"{source}: cannot be read ({error}); set align.textgrid.path") from None


def _of_folder(source: Path) -> Iterator[SourceFile]:
    for folder, subfolders, files in os.walk(source, onerror=_stop):
        subfolders.sort()
        for path in (Path(folder, file) for file in sorted(files) if file.lower().endswith((SUFFIX, *ARCHIVES))):
            name = str(path.relative_to(source))
            if not path.name.lower().endswith(SUFFIX):
                yield from (replace(inside, name=f"{name}/{inside.name}") for inside in source_files(path))
                continue
            try:
                status = path.stat()
                if problem := _problem(stat.S_ISREG(status.st_mode), status.st_size):
                    yield SourceFile(name, b"", problem)
                else:
                    yield SourceFile(name, path.read_bytes())
            except OSError as error:
                yield SourceFile(name, b"", ("unreadable", f"cannot be read ({error.strerror})"))


def _stop(error: OSError) -> NoReturn:
    raise error


def _of_zip(source: Path) -> Iterator[SourceFile]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.lower().endswith(SUFFIX):
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on Windows
            if problem := _problem(kind in (0, stat.S_IFREG), member.file_size):
                yield SourceFile(member.filename, b"", problem)
            elif member.flag_bits & 1:
                yield SourceFile(member.filename, b"", ("unreadable", "is encrypted"))
            else:
                with archive.open(member) as file:
                    yield SourceFile(member.filename, file.read(MAX_BYTES))


def _of_tar(watched: _LastRead) -> Iterator[SourceFile]:
    with tarfile.open(fileobj=watched, mode="r:") as archive:  # type: ignore[call-overload]
        for member in archive:
            archive.members.clear()  # tarfile keeps what it has passed, a kilobyte each
            if member.isdir() or not member.name.lower().endswith(SUFFIX):
                continue
            if problem := _problem(member.isreg(), member.size):
                yield SourceFile(member.name, b"", problem)
                continue
            content = archive.extractfile(member)
            data = content.read() if content else b""
            if len(data) != member.size:
                raise EOFError(f"it breaks off inside {member.name}")
            yield SourceFile(member.name, data)
    # tarfile takes a broken header for the end; the true end is a block of zeros, and gzip's checksum comes after it.
    if watched.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError("it breaks off, or is damaged, between two members")
    while watched.read(1 << 20):
        pass


def _problem(is_file: bool, size: int) -> tuple[str, str] | None:
    if not is_file:
        return "not_a_file", "is a link or a device, not a file"
    if size > MAX_BYTES:
        return "too_large", f"has {size} bytes; a TextGrid may have {MAX_BYTES}"
    return None


class _LastRead:
    """A file that remembers what was read last."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile):
        self.file = file
        self.last = b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self.last = self.file.read(size)
        return self.last
