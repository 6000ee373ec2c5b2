"""What goes to stderr, and the exit codes: the words karmactl says to a person.

Every failure is a `CtlError` that says what was wrong, whose fault it is and what to do next; `report`
is the one place that words it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Literal, TextIO

from karma.protocol.texts import spelled_out

Fault = Literal[
    "command line",
    "configuration",
    "server",
    "network",
    "cluster",
    "this machine",
    "you declined",
    "karmactl",
]
"""Where the cause lies, as the error names it."""


class Exit(IntEnum):
    """Every exit code of karmactl, except those of `karmactl check`, which speaks Nagios (0 to 3)."""

    OK = 0
    INTERNAL = 1
    """A fault of karmactl itself."""
    USAGE = 2
    """Usage or configuration."""
    NOT_FOUND = 3
    REFUSED = 4
    """By the server, by a guard, or declined at a prompt."""
    UNREACHABLE = 5
    TIMEOUT = 6
    PARTIAL = 7
    """Some of the work was done, or some of the nodes answered."""
    UNHEALTHY = 8
    SPLIT_BRAIN = 9
    PLAYBOOK_UNDONE = 10
    PLAYBOOK_PAUSED = 11
    """A playbook is paused, or its outcome is unknown."""
    INTERRUPTED = 130
    """Ctrl-C."""


MEANINGS: dict[Exit, str] = {
    Exit.OK: "ok",
    Exit.INTERNAL: "internal error of karmactl",
    Exit.USAGE: "usage or configuration",
    Exit.NOT_FOUND: "not found",
    Exit.REFUSED: "refused by the server or a guard, or declined",
    Exit.UNREACHABLE: "unreachable",
    Exit.TIMEOUT: "timeout",
    Exit.PARTIAL: "partial",
    Exit.UNHEALTHY: "unhealthy or degraded",
    Exit.SPLIT_BRAIN: "split brain",
    Exit.PLAYBOOK_UNDONE: "playbook undone",
    Exit.PLAYBOOK_PAUSED: "playbook paused or outcome unknown",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}
"""What `karmactl spec` and the manual say of each code."""


class CtlError(Exception):
    """A command that ends without doing what it was asked.

    `message` says what was wrong, `fault` where the cause lies, `advice` what to do next (one line each). No
    token may appear in them.
    """

    def __init__(self, code: Exit, message: str, *, fault: Fault, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fault = fault
        self.advice = advice

    @property
    def is_silence(self) -> bool:
        """Whether no answer came."""
        return self.code in {Exit.UNREACHABLE, Exit.TIMEOUT}


def usage(message: str, advice: str = "") -> CtlError:
    """Return the error of a command line that makes no sense."""
    return CtlError(Exit.USAGE, message, fault="command line", advice=advice)


def suggestion(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `did you mean prod?` for a word that nearly is one of the known, "" for any other."""
    from difflib import get_close_matches  # noqa: PLC0415  only errors pay for it

    close = get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else ""


_LINES = "\n\t"
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")


def harmless(text: str, *, with_styles: bool) -> str:
    """Return a text that cannot steer a terminal; colours stay where there are any.

    Whatever goes to a terminal passes here, so that no command need think of it. Cells are spelled out on
    their own before that: they must not bring colours either.
    """
    if text.isprintable():
        return text
    if not with_styles:
        return spelled_out(text, keep=_LINES)
    return "".join(
        part if at % 2 else spelled_out(part, keep=_LINES) for at, part in enumerate(_STYLE.split(text))
    )


class Talk:
    """stderr: notes, warnings, progress and errors. Nothing here is data."""

    def __init__(self, stream: TextIO, *, is_coloured: bool) -> None:
        self.stream = stream
        self.is_coloured = is_coloured
        self.is_terminal = stream.isatty()
        self._is_in_progress = False

    def say(self, text: str) -> None:
        """Write a line."""
        self._write(text + "\n")

    def warn(self, text: str) -> None:
        """Write a line that deserves a look."""
        self._write(f"{self.styled('warning:', '33')} {text}\n")

    def report(self, error: CtlError) -> None:
        """Write an error: what was wrong, whose fault it is, what to do next."""
        # Its words may be a server's or a file's: they bring no colours.
        self._write(f"{self.styled('error:', '31')} {spelled_out(error.message, keep=_LINES)}\n")
        self._write(f"  fault: {error.fault}\n")
        if error.advice:
            self._write(f"  next:  {spelled_out(error.advice, keep=_LINES)}\n")

    def prompt(self, text: str) -> None:
        """Write a question, without ending its line."""
        self._write(text)

    def progress(self, text: str) -> None:
        """Replace the progress line; only a terminal shows one."""
        if self.is_terminal and (text or self._is_in_progress):
            self._is_in_progress = bool(text)
            self._write(text, before="\r\x1b[K")

    def styled(self, text: str, style: str) -> str:
        """Return a text in an ANSI style such as "31" (red) where colours are on."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.is_coloured else text

    def _write(self, text: str, before: str = "") -> None:
        # A reader of stderr that went away must not stop the work.
        try:
            self.stream.write(before + harmless(text, with_styles=self.is_coloured))
            self.stream.flush()
        except BrokenPipeError:
            pass
