"""Opening what a user named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from earmark.errors import InputError


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """The bytes of a file; `.gz` is decompressed.

    InputError if the file is missing, unreadable, or a gzip file that breaks off.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path in the configuration") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); copy or compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path in the configuration") from None
