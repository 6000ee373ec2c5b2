"""karmactl for tests: run in this process on real pipes or pseudo-terminals, compared with golden files."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import shlex
import struct
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from peers import Peer, failure

from karmactl import cli

EXPECTED = Path(__file__).parent / "golden" / "expected"
WIDE, NARROW = 120, 40


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


class _Reader:
    """Reads a descriptor to its end in a thread, so that no writer waits for a full buffer."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.data = b""
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self.descriptor, 65536)
            except OSError:  # how Linux says that a terminal's other side is closed
                block = b""
            if not block:
                break
            self.data += block
        os.close(self.descriptor)

    def text(self) -> str:
        self.thread.join()
        return self.data.decode()


def _terminal(columns: int) -> tuple[int, int]:
    """A pseudo-terminal of a width that passes bytes as they are: (our side, the program's side)."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    return ours, theirs


def karmactl(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    columns: int | None = None,
    typed: str | None = None,
) -> Ended:
    """Run a command line in this process.

    stdout and stderr are pipes, or terminals of so many columns. stdin is a terminal when something is typed
    into it, else it is empty.
    """
    (out, out_end), (err, err_end) = [os.pipe() if columns is None else _terminal(columns) for _ in range(2)]
    readers = _Reader(out), _Reader(err)
    stdin: TextIO = io.StringIO()
    keyboard = -1
    if typed is not None:
        keyboard, stdin_end = _terminal(80)
        os.write(keyboard, typed.encode())
        stdin = os.fdopen(stdin_end, encoding="utf-8")
    with (
        os.fdopen(out_end, "w", encoding="utf-8") as stdout,
        os.fdopen(err_end, "w", encoding="utf-8") as stderr,
    ):
        code = cli.run(arguments, {"HOME": "/nowhere", **(environ or {})}, stdin, stdout, stderr)
    if keyboard >= 0:
        stdin.close()
        os.close(keyboard)
    return Ended(code, *(reader.text() for reader in readers))


# -- Golden files -----------------------------------------------------------------------------------------

FORMATS = ("table", "json", "jsonl", "csv")

STABLE: tuple[tuple[str, str], ...] = (
    (r"127\.0\.0\.1:\d{5}\b", "127.0.0.1:PPPPP"),
    (r"\b20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ", "YYYY-MM-DD hh:mm:ssZ"),
    (r"\b(?=\d*[a-f])[0-9a-f]{16}\b", "IIIIIIIIIIIIIIII"),
    (r"\b1[789]\d{8}(?=\b|_)", "SSSSSSSSSS"),
    (r"/[^\s\"]*/pytest-of-[^\s\"/]*/[^\s\"/]*/[^\s\"/]*/", "/…/"),
)
"""What differs from run to run, and what stands for it: as wide, so that tables stay aligned."""

VOLATILE: tuple[tuple[str, str], ...] = (
    (r"\d+(\.\d+)*( ?(KiB|MiB|GiB|TiB|ms|µs|B|s|m|h|d|%)(?!\w))?", "#"),
    (r"# (?=#)", ""),
    (r" {2,}", "  "),
)
"""For figures of any width: numbers become #, and columns are no longer aligned."""


def masked(text: str, *, is_volatile: bool = False) -> str:
    """A text with what differs from run to run replaced, and escape sequences in letters."""
    for pattern, mask in (*STABLE, *(VOLATILE if is_volatile else ())):
        text = re.sub(pattern, mask, text)
    if "/…/" in text:
        # A folder's name may be of any length, and widens its column.
        text = re.sub(r" {2,}", "  ", text)
    return text.replace("\x1b", "\\e").replace("\r", "\\r")


def _described(title: str, ended: Ended, *, is_volatile: bool) -> str:
    lines = [f"## {title}: exit {ended.code}", masked(ended.stdout, is_volatile=is_volatile)]
    if ended.stderr:
        lines += ["-- stderr", masked(ended.stderr, is_volatile=is_volatile)]
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def transcript(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    formats: Sequence[str] = FORMATS,
    widths: Sequence[int] = (WIDE, NARROW),
    is_volatile: bool = False,
) -> str:
    """One command in every format piped, in wide and narrow terminals, and in one without colours."""
    parts = [f"$ karmactl {masked(' '.join(arguments), is_volatile=is_volatile)}\n"]
    for form in formats:
        ended = karmactl(*arguments, "--output", form, environ=environ)
        parts.append(_described(f"piped, {form}", ended, is_volatile=is_volatile))
    for columns in widths:
        ended = karmactl(*arguments, environ=environ, columns=columns)
        parts.append(_described(f"terminal of {columns} columns", ended, is_volatile=is_volatile))
    ended = karmactl(*arguments, environ={**environ, "NO_COLOR": "1"}, columns=WIDE)
    parts.append(_described("terminal, NO_COLOR", ended, is_volatile=is_volatile))
    return "\n".join(parts)


class Step(NamedTuple):
    """One command line of a story; with `columns` on terminals, where something may be typed."""

    line: str
    columns: int | None = None
    typed: str | None = None


def story(steps: Sequence[str | Step], environ: Mapping[str, str], *, is_volatile: bool = False) -> str:
    """Commands that build on each other, with what each one printed. A word $NAME is a variable."""
    parts = []
    for step in steps:
        line, columns, typed = (step, None, None) if isinstance(step, str) else step
        words = [environ[word[1:]] if word.startswith("$") else word for word in shlex.split(line)]
        ended = karmactl(*words, environ=environ, columns=columns, typed=typed)
        place = f"terminal of {columns} columns" if columns else "piped"
        title = place + (f", typed {typed!r}" if typed is not None else "")
        parts += [f"$ karmactl {line}\n{_described(title, ended, is_volatile=is_volatile)}"]
    return "\n".join(parts)


def compare(name: str, text: str) -> None:
    """Hold a text against its golden file; with UPDATE_GOLDEN=1 in the environment, write that instead."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing: UPDATE_GOLDEN=1 writes it"
    wanted = path.read_text()
    if text != wanted:
        lines = unified_diff(wanted.splitlines(), text.splitlines(), str(path), "now", lineterm="")
        raise AssertionError("if this is meant, UPDATE_GOLDEN=1 writes it:\n" + "\n".join(lines))


# -- A server of another version --------------------------------------------------------------------------


def original(transcript_file: Path) -> Peer:
    """A peer that answers as Karma 1.0.1 did when it was recorded, and knows nothing newer."""
    replies = {}
    for line in transcript_file.read_text().splitlines():
        recorded = json.loads(line)
        try:
            op = json.loads(recorded["request"])["op"]
        except (ValueError, KeyError, TypeError):
            continue
        if json.loads(recorded["reply"])["success"]:
            replies[op] = recorded["reply"].encode() + b"\n"

    def answer(request: dict[str, Any]) -> bytes:
        op = request["op"]
        return replies[op] if op in replies else failure("unknown_command", f"Unknown command: {op}")

    return Peer(lambda connection: connection.serve(answer))


# -- A person at a terminal -------------------------------------------------------------------------------

SECONDS = 60.0
PROMPT = "\x1b[0m>"
"""How a shell's prompt ends, whatever it says."""


class Terminal:
    """A program on a pseudo-terminal of its own, as a person has it."""

    def __init__(self, environ: dict[str, str], *command: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDE, 0, 0))
            os.execvpe(command[0], command, environ)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[-500:]!r}"
            try:
                self._read()
            except OSError:
                break
        assert text in self.seen, self.seen[-500:]

    def _read(self) -> None:
        """Take what the program wrote. Who asks where the cursor is, is answered, as by any terminal."""
        data = os.read(self.descriptor, 65536)
        if b"\x1b[6n" in data:
            os.write(self.descriptor, b"\x1b[1;1R")
        self.seen += data.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def end(self) -> int:
        """Wait for the program and return its exit code."""
        try:
            while True:
                self._read()
        except OSError:  # Linux says so that the other side is closed
            os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Shell(Terminal):
    """A shell of karmactl that is typed into."""

    def __init__(self, environ: dict[str, str], *command: str) -> None:
        super().__init__(environ, *command)
        self.next("leaves it")
        self.next(PROMPT)

    def next(self, text: str) -> None:
        """Wait for something that was not there yet."""
        self.wait_for(text)
        self.seen = self.seen.rpartition(text)[2]

    def run(self, line: str, answer: str) -> None:
        self.type(line)
        self.next(answer)

    def command(self, line: str, answer: str) -> None:
        """Run a whole line and wait until the next one can be typed: earlier keys are the kernel's."""
        self.run(f"{line}\r", answer)
        self.next(PROMPT)

    def leave(self, keys: str = "\\q\r") -> None:
        self.type(keys)
        assert self.end() == 0
