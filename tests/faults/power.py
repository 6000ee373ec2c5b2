"""What a power cut may leave of a directory, given the calls that were made to it.

The model is meaner than any one file system:

- What was written to a file since the sync of it that began last and has ended may be there, or not, or in
  part: a first part of the calls, any of them without the others, a call cut off at any byte, or any of its
  sectors, with zeros where nothing arrived. A truncation may be undone. What was synced stands.
- A name that was made, moved or removed since the folder was synced may be as before. The calls for one
  folder may survive in any combination, but a rename is never half done within a folder, and a file
  moved from one folder to another may be in both, never in none.
- Nothing of one file or folder says anything about another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from faults.system import Event

SECTOR_BYTES = 512
Contents = dict[str, bytes | None]
"""What is below a directory: files with their bytes, folders with None, by path from there."""


@dataclass(slots=True)
class Change:
    """A call that changed a file: data from an offset on, or None for a cut to that size."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            content[self.offset :] = bytes(max(self.offset - len(content), 0))
            return
        content.extend(bytes(max(self.offset - len(content), 0)))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(slots=True, eq=False)
class File:
    """A file: what is durable of it, and the changes since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    size_bytes: int = 0
    dropped: int = 0
    """How many changes became durable: changes are counted from the file's birth."""

    def add(self, change: Change) -> None:
        self.pending.append(change)
        end = change.offset + len(change.data or b"")
        self.size_bytes = end if change.data is None else max(self.size_bytes, end)

    def synced(self, changes: int) -> None:
        """Make the first so many changes durable, counted from the file's birth."""
        while self.dropped < changes:
            self.pending.pop(0).apply(self.durable)
            self.dropped += 1

    def content(self, changes: list[Change] | None = None) -> bytes:
        found = bytearray(self.durable)
        for change in self.pending if changes is None else changes:
            change.apply(found)
        return bytes(found)


@dataclass(slots=True, eq=False)
class Move:
    """What one call did to a folder's names: each now names something, or nothing."""

    names: dict[str, File | Folder | None]
    needs: Move | None = None
    """The other half of a move between folders, without which this one would lose the file."""
    is_durable: bool = False


@dataclass(slots=True, eq=False)
class Folder:
    """A folder: the names that are durable, and the calls since."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Move] = field(default_factory=list)
    dropped: int = 0

    def names(self, moves: list[Move] | None = None) -> dict[str, File | Folder]:
        found = dict(self.durable)
        for move in self.pending if moves is None else moves:
            _apply(found, move)
        return found

    def synced(self, moves: int) -> None:
        """Make the first so many moves durable, counted from the folder's birth."""
        while self.dropped < moves:
            move = self.pending.pop(0)
            move.is_durable = True
            _apply(self.durable, move)
            self.dropped += 1


def _apply(names: dict[str, File | Folder], move: Move) -> None:
    for name, found in move.names.items():
        if found is None:
            names.pop(name, None)
        else:
            names[name] = found


class Machine:
    """The files below a directory as a trace leaves them, with what a power cut would take."""

    def __init__(self) -> None:
        self.root = Folder()
        self._open: dict[str, File | Folder] = {}
        self._syncing: dict[tuple[str, int], tuple[File | Folder, int]] = {}

    @classmethod
    def holding(cls, contents: Contents) -> Machine:
        """Return a machine on whose disk these contents are."""
        machine = cls()
        for path, data in contents.items():
            folder, name = machine._place(path)
            folder.durable[name] = Folder() if data is None else File(bytearray(data), size_bytes=len(data))
        return machine

    def folder(self, path: str) -> Folder:
        """Return the folder of that path, as the running system sees it."""
        found: File | Folder = self.root
        for name in path.split("/") if path else ():
            assert isinstance(found, Folder)
            found = found.names()[name]
        assert isinstance(found, Folder)
        return found

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        return self.folder(parent), name

    def file(self, handle: str) -> File:
        """Return an open file."""
        found = self._open[handle]
        assert isinstance(found, File)
        return found

    def apply(self, event: Event) -> None:
        """Do what a call did."""
        match event.kind:
            case "open":
                self._open_path(event)
            case "write":
                file = self.file(event.file)
                file.add(Change(file.size_bytes if event.number < 0 else event.number, event.data))
            case "truncate":
                self.file(event.file).add(Change(event.number, None))
            case "sync":
                synced = self._open[event.file]
                self._syncing[event.file, event.number] = synced, synced.dropped + len(synced.pending)
            case "synced":
                synced, count = self._syncing.pop((event.file, event.number))
                synced.synced(count)
            case "rename":
                self._rename(event)
            case "unlink":
                folder, name = self._place(event.path)
                folder.pending.append(Move({name: None}))
            case "mkdir" if event.path:
                folder, name = self._place(event.path)
                folder.pending.append(Move({name: Folder()}))

    def _open_path(self, event: Event) -> None:
        if event.number & os.O_DIRECTORY:
            self._open[event.file] = self.folder(event.path)
            return
        folder, name = self._place(event.path)
        file = folder.names().get(name)
        if file is None:
            file = File()
            folder.pending.append(Move({name: file}))
        assert isinstance(file, File)
        if event.number & os.O_TRUNC and file.size_bytes:
            file.add(Change(0, None))
        # Without O_APPEND, too, a file is written from its start on, one write after another.
        self._open[event.file] = file

    def _rename(self, event: Event) -> None:
        (old_folder, old_name), (new_folder, new_name) = self._place(event.path), self._place(event.new_path)
        found = old_folder.names()[old_name]
        if old_folder is new_folder:
            old_folder.pending.append(Move({new_name: found, old_name: None}))
            return
        arrival = Move({new_name: found})
        new_folder.pending.append(arrival)
        old_folder.pending.append(Move({old_name: None}, needs=arrival))

    def contents(self) -> Contents:
        """Return what is there as the running system sees it."""
        return self._contents(lambda file: file.content(), lambda folder: folder.pending)

    def crashed(self, random: Random) -> Contents:
        """Return what a power cut now may leave, drawn at random."""
        of_names = random.choice(("lost", "kept", "first", "any", "any"))
        of_data = random.choice(("lost", "kept", "first", "any", "torn", "torn", "sectors", "zeros"))
        kept: set[int] = set()

        def keep(folder: Folder) -> list[Move]:
            moves = _kept_moves(random, of_names, folder.pending)
            moves = [move for move in moves if move.needs is None or _is_kept(move.needs, kept)]
            kept.update(map(id, moves))
            return moves

        return self._contents(lambda file: _kept_data(random, of_data, file), keep)

    def _contents(
        self, content_of: Callable[[File], bytes], moves_of: Callable[[Folder], list[Move]]
    ) -> Contents:
        contents: dict[File, bytes] = {}

        def walk(folder: Folder, prefix: str, found: Contents) -> None:
            for name, node in sorted(names[folder].items()):
                if isinstance(node, Folder):
                    found[prefix + name] = None
                    walk(node, f"{prefix}{name}/", found)
                else:
                    # The same file by two names has one content.
                    if node not in contents:
                        contents[node] = content_of(node)
                    found[prefix + name] = contents[node]

        # Where something arrives is decided before where it left.
        names: dict[Folder, dict[str, File | Folder]] = {}
        folders = sorted(self._folders(), key=lambda folder: any(move.needs for move in folder.pending))
        for folder in folders:
            names[folder] = folder.names(moves_of(folder))
        found: Contents = {}
        walk(self.root, "", found)
        return found

    def _folders(self) -> Iterator[Folder]:
        """Yield every folder that may be seen."""
        left, seen = [self.root], set[Folder]()
        while left:
            folder = left.pop()
            if folder in seen:
                continue
            seen.add(folder)
            yield folder
            nodes = [
                *folder.durable.values(),
                *(node for move in folder.pending for node in move.names.values()),
            ]
            left += [node for node in nodes if isinstance(node, Folder)]


def _is_kept(move: Move, kept: set[int]) -> bool:
    return move.is_durable or id(move) in kept


def _kept_moves(random: Random, how: str, pending: list[Move]) -> list[Move]:
    match how:
        case "lost":
            return []
        case "kept":
            return list(pending)
        case "first":
            return pending[: random.randint(0, len(pending))]
    return [move for move in pending if random.random() < 0.5]


def _kept_data(random: Random, how: str, file: File) -> bytes:
    pending = file.pending
    if not pending or how == "lost":
        return bytes(file.durable)
    if how == "kept":
        return file.content()
    if how == "any":
        return file.content([change for change in pending if random.random() < 0.5])
    if how == "zeros":
        # The size arrived, the data did not.
        return file.content([Change(each.offset, each.data and bytes(len(each.data))) for each in pending])
    if how == "sectors":
        return file.content([part for change in pending for part in _sectors(random, change)])
    whole = random.randrange(len(pending))
    changes = pending[:whole]
    last = pending[whole]
    if how == "torn" and last.data is not None:
        changes.append(Change(last.offset, last.data[: random.randint(0, len(last.data))]))
    return file.content(changes)


def _sectors(random: Random, change: Change) -> Iterator[Change]:
    """Yield those sectors of a change that arrived, zeros for the others."""
    if change.data is None:
        if random.random() < 0.5:
            yield change
        return
    position = 0
    while position < len(change.data):
        size = SECTOR_BYTES - (change.offset + position) % SECTOR_BYTES
        part = change.data[position : position + size]
        yield Change(change.offset + position, part if random.random() < 0.5 else bytes(len(part)))
        position += size


def write_out(contents: Contents, directory: Path) -> None:
    """Make a directory with these contents."""
    directory.mkdir()
    for name, data in contents.items():
        path = directory / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def contents_of(directory: Path) -> Contents:
    """Return what is in a directory."""
    return {
        path.relative_to(directory).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }
