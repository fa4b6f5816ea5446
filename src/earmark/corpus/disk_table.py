"""Tables in which the files of a corpus are joined, on disk: ten million rows take no more memory than ten thousand."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earmark.corpus.records import BadEntry
from earmark.errors import EarmarkError

_CHUNK_ROWS = 10_000
# Nothing has to outlive the process, so there is no journal; the cache is in KiB where it is negative.
_PRAGMAS = ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-65536")


class DiskTables:
    """Tables of a temporary SQLite database; each has the columns `id` (text, every id once) and `line` first.

    The database has no name: SQLite unlinks its file (in $SQLITE_TMPDIR, $TMPDIR or /var/tmp) as soon as it is open,
    so a killed job leaves nothing behind, and makes one only when the tables outgrow its cache.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for pragma in _PRAGMAS:
            self._database.execute(f"PRAGMA {pragma}")

    def __enter__(self) -> DiskTables:
        return self

    def __exit__(self, *exception: object) -> None:
        self._database.close()

    def fill(
        self, name: str, path: Path, columns: Sequence[str], rows: Iterable[tuple[Any, ...] | BadEntry]
    ) -> Iterator[BadEntry]:
        """Make the table `name` of `rows`, (id, line, *columns) each, of the file at `path`, while it is iterated.

        Yields the BadEntry among `rows` as they come, then a BadEntry for every row whose id stands on an earlier line
        already: the first one stays. EarmarkError when the disk is full.
        """
        names = ", ".join(["id TEXT NOT NULL", "line INTEGER NOT NULL", *columns])
        self._run(f"CREATE TABLE {name} ({names})")
        insert = f"INSERT INTO {name} VALUES ({', '.join('?' * (len(columns) + 2))})"  # noqa: S608 (our own names)
        chunk: list[tuple[Any, ...]] = []
        for row in rows:
            if isinstance(row, BadEntry):
                yield row
                continue
            chunk.append(row)
            if len(chunk) == _CHUNK_ROWS:
                self._insert(insert, chunk)
                chunk = []
        self._insert(insert, chunk)
        # An index made at the end is sorted once, which is many times faster than one kept while rows come.
        self._run(f"CREATE INDEX {name}_id ON {name} (id)")
        first_row = f"(SELECT min(rowid) FROM {name} WHERE id = later.id)"  # noqa: S608
        repeated = f"{name} AS later WHERE rowid > {first_row}"
        any_repeated = False
        for identifier, line, first_line in self.rows(
            f"SELECT id, line, (SELECT line FROM {name} WHERE rowid = {first_row}) FROM {repeated} ORDER BY rowid"  # noqa: S608
        ):
            any_repeated = True
            yield BadEntry(identifier, "duplicate_id", f"{path}:{line}: also on line {first_line}")
        if any_repeated:
            self._run(f"DELETE FROM {repeated}")  # noqa: S608

    def rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows that an SQL query gives, as a stream. `ORDER BY {table}.rowid` is the order of insertion.

        A LEFT JOIN on `id` keeps what has no partner; `WHERE NOT EXISTS (…)` finds what is left over.
        """
        with _plainly():
            yield from self._database.execute(query, values)

    def find(self, name: str, identifier: str) -> tuple[Any, ...] | None:
        """The row of one id in the table `name`, or None."""
        return next(self.rows(f"SELECT * FROM {name} WHERE id = ?", identifier), None)  # noqa: S608

    def _insert(self, statement: str, chunk: list[tuple[Any, ...]]) -> None:
        with _plainly():
            self._database.execute("BEGIN")
            self._database.executemany(statement, chunk)
            self._database.execute("COMMIT")

    def _run(self, statement: str) -> None:
        with _plainly():
            self._database.execute(statement)


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            raise
        place = os.environ.get("SQLITE_TMPDIR") or os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108
        raise EarmarkError(
            f"{place}: the temporary tables of the corpus cannot be kept there ({error}); set TMPDIR to a folder on a "
            "disk with room for a copy of the corpus's manifests"
        ) from None
