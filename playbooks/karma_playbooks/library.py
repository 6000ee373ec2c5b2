"""The books there are: ours, and those of an operator's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from karma_playbooks import strict
from karma_playbooks.errors import PlaybookError

if TYPE_CHECKING:
    from karma_playbooks.format import Book

BOOKS = Path(__file__).parent / "books"


class Listed(NamedTuple):
    """A book as a list shows it; `title` is what is wrong where it cannot be read."""

    name: str
    path: Path
    title: str
    loses: str | None


def list_books(own: Path) -> list[Listed]:
    """Return every book. Ours are not checked again: their tests do that."""
    listed = []
    for name, path in book_names(own).items():
        if path.parent == BOOKS:
            head = strict.load(read_text(path), path.name).value
            listed.append(Listed(name, path, head["title"], head["loses"]))
            continue
        try:
            book = load_book(name, own)
            listed.append(Listed(name, path, book.title, book.loses))
        except PlaybookError as error:
            listed.append(Listed(name, path, error.message.partition("\n")[0], None))
    return listed


def book_names(own: Path) -> dict[str, Path]:
    """Return every book by name: ours, and those of a folder, which may not take our names."""
    found = {path.stem: path for path in sorted(own.glob("*.yml"))} if own.is_dir() else {}
    return {**found, **{path.stem: path for path in sorted(BOOKS.glob("*.yml"))}}


def load_book(name: str, own: Path) -> Book:
    """Return a book by its name, or by the path of its file. Raises PlaybookError."""
    known = book_names(own)
    path = known.get(name) or Path(name)
    if name not in known and not name.endswith((".yml", ".yaml")):
        raise PlaybookError(
            f'there is no playbook "{name}"',
            f"there are {', '.join(sorted(known))}; a file ends in .yml",
            "not found",
        )
    # Whoever only lists books needs neither their schema nor the client.
    from karma_playbooks import format as format_  # noqa: PLC0415

    return format_.load(read_text(path), str(path) if name not in known else path.name)


def read_text(path: Path) -> str:
    """Return a file's text. Raises PlaybookError."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PlaybookError(f"{path} cannot be read: {reason}", "", "not found") from error
