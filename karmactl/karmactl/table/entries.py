"""What the command table is made of: commands, what they take, and the shape of what they print.

Named tuples, here and wherever every start comes by: a dataclass takes five times as long to define, and ten
of them would be a tenth of what a start may cost.
"""

from __future__ import annotations

import keyword
from typing import Any, Literal, NamedTuple

from karma.ops import BY_NAME

Kind = Literal[
    "text",
    "flag",
    "number",
    "u64",
    "float",
    "day",
    "seconds",
    "node",
    "series",
    "context",
    "file",
    "path",
    "operation",
    "choice",
]
"""What an argument takes. `build` turns it into a parser, `completion` into live proposals."""
Effect = Literal["local", "read", "write", "operation"]
"""local: talks to no server. write: changes something on one. operation: as the operation that is called."""
Token = Literal["read", "write", "admin"]
Danger = Literal["", "question", "typed"]
"""question: asks before it acts. typed: data goes away, so a name must be typed."""

_TOKENS: dict[str, Token] = {"R": "read", "W": "write", "A": "admin"}
HARMLESS = frozenset({"system.clients", "replication.wait", "replication.checksum"})
"""Operations that change nothing, although they need a strong token or this version's op table lacks them."""


Guide = tuple[str, tuple[tuple[str, str], ...]]
"""A part of a help text: its title, and rows of what is written and what it means."""


class Argument(NamedTuple):
    """A positional argument. `many` takes one or more."""

    name: str
    kind: Kind = "text"
    help: str = ""
    required: bool = True
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The handler's parameter."""
        return _parameter(self.name)


class Option(NamedTuple):
    """An option `--name`. Left out it is None, a flag False, one that can be repeated an empty tuple."""

    name: str
    kind: Kind = "text"
    help: str = ""
    default: Any = None
    many: bool = False
    required: bool = False
    choices: tuple[str, ...] = ()
    metavar: str = ""
    short: str = ""

    @property
    def parameter(self) -> str:
        """The handler's parameter."""
        return _parameter(self.name)


def _parameter(name: str) -> str:
    plain = name.replace("-", "_")
    return plain + "_" if keyword.iskeyword(plain) else plain


class Column(NamedTuple):
    """A field of what a command prints. `kind` decides how a table spells it, never how JSON does."""

    name: str
    kind: str = "text"


def columns(*names: str) -> tuple[Column, ...]:
    """Return columns from words such as ``key:number``; without a kind it is text."""
    return tuple(Column(*name.split(":")) for name in names)


class Shape(NamedTuple):
    """What a command prints: one object, a list of objects, or text that is no data.

    `columns` are what the table shows of a list, or the known fields of an object; JSON has every field.
    """

    kind: Literal["object", "list", "text"]
    columns: tuple[Column, ...] = ()


def thing(*names: str) -> Shape:
    """One object."""
    return Shape("object", columns(*names))


def listing(*names: str) -> Shape:
    """A list of objects."""
    return Shape("list", columns(*names))


TEXT = Shape("text")


class Command(NamedTuple):
    """One command.

    `handler` is ``module.function`` within `karmactl.commands`, loaded when the command runs. `ops` are the
    operations it sends, from which its effect and token follow unless given. `instead` says what works on a
    server that lacks them.
    """

    name: str
    handler: str
    help: str
    ops: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    shape: Shape = TEXT
    examples: tuple[tuple[str, str], ...] = ()
    """(command line without `karmactl`, what it does)."""
    details: str = ""
    danger: Danger = ""
    can_watch: bool = False
    can_wait: bool = False
    instead: str = ""
    given_effect: Effect | None = None
    least_token: Token | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The words of the command."""
        return tuple(self.name.split())

    @property
    def effect(self) -> Effect:
        """Whether it changes anything on a server."""
        if self.given_effect:
            return self.given_effect
        if not self.ops:
            return "local"
        return "write" if any(map(changes, self.ops)) else "read"

    @property
    def token(self) -> Token | None:
        """The weakest token that suffices for every operation it may send; None for a local command."""
        if self.least_token or not self.ops:
            return self.least_token
        ranks: tuple[Token, ...] = ("read", "write", "admin")
        needed = [_TOKENS[BY_NAME[op].access] if op in BY_NAME else "admin" for op in self.ops]
        return max(needed, key=ranks.index)


def changes(op: str) -> bool:
    """Return whether an operation changes anything on a server; one this version does not know may."""
    found = BY_NAME.get(op)
    return (found is None or found.access != "R") and op not in HARMLESS
