"""The journal: what every run was asked, meant to do, did and saw, in SQLite with every commit synced.

It is the truth about runs; events and status are read from it. Entries are only ever added. Each run's form a
chain of digests, so that a copy on another machine can be proven whole.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import GENESIS, Entry, History, broken_at, digest_of, fold

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    number INTEGER NOT NULL,
    unix_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    digest TEXT NOT NULL,
    UNIQUE (run, number)
);
CREATE TABLE IF NOT EXISTS emitted (consumer TEXT PRIMARY KEY, position INTEGER NOT NULL);
"""


class JournalError(PlaybookError):
    """The journal cannot be read or written. Nothing is done that it could not record."""


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


class Journal:
    """One journal file. `watch` is called with each entry that was added. Raises JournalError when it cannot
    be opened.
    """

    def __init__(self, path: Path, watch: Callable[[Entry], None] | None = None) -> None:
        self.path = path
        self._watch = watch
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            self._db = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _trouble(self, error: Exception) -> JournalError:
        return JournalError(
            f"the journal {self.path} cannot be used: {error}",
            "make room or mend the path, then go on with `karmactl playbook status`",
            "internal",
        )

    def append(self, run: str, kind: str, data: Mapping[str, Any]) -> Entry:
        """Add an entry; when this returns it is on disk. Raises JournalError, with nothing added."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                row = self._db.execute(
                    "SELECT number, digest FROM entries WHERE run = ? ORDER BY number DESC LIMIT 1", (run,)
                ).fetchone()
                last, before = row or (0, GENESIS)
                unix_ms = time.time_ns() // 1_000_000
                digest = digest_of(before, run, last + 1, unix_ms, kind, data)
                entry = Entry(run, last + 1, unix_ms, kind, data, digest)
                self._insert(entry)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        self._tell(entry)
        return entry

    def _insert(self, entry: Entry) -> None:
        values = (entry.run, entry.number, entry.unix_ms, entry.kind)
        text = json.dumps(entry.data, ensure_ascii=False, sort_keys=True)
        self._db.execute(
            "INSERT INTO entries (run, number, unix_ms, kind, data, digest) VALUES (?, ?, ?, ?, ?, ?)",
            (*values, text, entry.digest),
        )

    def entries(self, run: str) -> list[Entry]:
        """Return a run's entries. Raises JournalError when the chain is broken: somebody changed the file."""
        try:
            rows = self._db.execute(
                "SELECT run, number, unix_ms, kind, data, digest FROM entries WHERE run = ? ORDER BY number",
                (run,),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        found = [_entry(row) for row in rows]
        wrong = broken_at(found)
        if wrong is not None:
            raise JournalError(
                f"entry {wrong} of run {run} in {self.path} was changed or lost: its chain is broken",
                "fetch the run from a host: `karmactl playbook resume` on a machine without this journal",
                "internal",
            )
        return found

    def history(self, run: str) -> History:
        """Return what a run has done. Raises PlaybookError for an unknown one."""
        entries = self.entries(run)
        if not entries:
            raise PlaybookError(
                f"there is no run {run} here", "`karmactl playbook history` lists runs", "not found"
            )
        return fold(run, entries)

    def runs(self) -> list[str]:
        """Return every run, the newest first."""
        rows = self._db.execute("SELECT run FROM entries GROUP BY run ORDER BY min(position) DESC").fetchall()
        return [row[0] for row in rows]

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Take in a run that another machine began: what is behind the entries that are here already.

        Raises JournalError when they are no whole chain, or another one than what is here.
        """
        found = list(entries)
        mine = self.entries(found[0].run) if found else []
        if broken_at(found) is not None or any(
            a.digest != b.digest for a, b in zip(found, mine, strict=False)
        ):
            raise JournalError("the copy of the journal is not whole, or of another run", "", "internal")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for entry in found[len(mine) :]:
                self._insert(entry)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        for entry in found[len(mine) :]:
            self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        if self._watch is not None:
            self._watch(entry)

    # -- The outbox --------------------------------------------------------------------------------------

    def not_emitted(self, consumer: str) -> list[tuple[int, Entry]]:
        """Return entries that a consumer has not had yet, with their positions."""
        rows = self._db.execute(
            "SELECT position, run, number, unix_ms, kind, data, digest FROM entries WHERE position > "
            "coalesce((SELECT position FROM emitted WHERE consumer = ?), 0) ORDER BY position",
            (consumer,),
        ).fetchall()
        return [(row[0], _entry(row[1:])) for row in rows]

    def note_emitted(self, consumer: str, position: int) -> None:
        """Remember that a consumer has everything up to a position."""
        self._db.execute(
            "INSERT INTO emitted VALUES (?, ?) ON CONFLICT (consumer) "
            "DO UPDATE SET position = excluded.position",
            (consumer, position),
        )


def _entry(row: tuple[Any, ...]) -> Entry:
    run, number, unix_ms, kind, data, digest = row
    return Entry(run, number, unix_ms, kind, json.loads(data), digest)
