"""A command on a host, once: under a small detached wrapper that leaves what became of it on the host.

`~/.karma-playbook/RUN/STEP.ATTEMPT/` is made first, and whoever fails to make it did not start anything.
The command goes on when the connection breaks; whoever comes back finds there

    command     its words, for people
    start       a folder: the right to start, taken by the command itself or by who gave it up
    pid         its process, leader of a session of its own
    output      what it printed
    status      its exit code, when it has ended

so that a cut connection means "look", never "failed". The host needs POSIX sh and setsid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from karma_playbooks.shell_words import UnusableWordError, file_name, word, words
from karma_playbooks.transports.shell import LinkLostError, OnOutput, Ran, Shell, UnreachableError

DEFAULT_DIRECTORY = "$HOME/.karma-playbook"
_REFUSED = 90
"""Exit code of the launching script when it surely started nothing."""
_TRIES = 3
_RETRY_SECONDS = 0.5
_WRAPPER = """
job=$1; shift
mkdir "$job/start" 2>/dev/null || exit 0
echo $$ > "$job/pid" || exit 0
"$@" > "$job/output" 2>&1
code=$?
echo $code > "$job/status.new" && mv "$job/status.new" "$job/status"
"""
"""What runs a command on the host: the job's folder is its first argument, the command's words are the
others."""


class NotStartedError(Exception):
    """The command surely did not run."""


class UnknownError(Exception):
    """Nobody knows whether the command ran, or to what end."""


class NoStatusError(UnknownError):
    """The command began, its process is gone, and it left no status."""


class Finished(NamedTuple):
    """A command that ended by itself."""

    code: int
    output: str


@dataclass(slots=True)
class Host:
    """One host: a way to it, and where runs leave their state there."""

    shell: Shell
    directory: str = ""

    def path(self, *names: str) -> str:
        """Return a path below the folder of all runs, as a word for a shell; each name is one component."""
        base = word(self.directory) if self.directory else f'"{DEFAULT_DIRECTORY}"'
        return base + "".join(word("/" + file_name(name)) for name in names)

    async def run(
        self,
        key: str,
        argv: Sequence[str],
        timeout_seconds: float,
        *,
        secret: str | None = None,
        on_output: OnOutput | None = None,
    ) -> Finished:
        """Run a command under a key (`RUN/STEP.ATTEMPT`), and never twice. `secret` is its first line of
        input.

        Raises NotStartedError and UnknownError.
        """
        try:
            ran = await self.shell.script(self._launch(key, argv, secret))
        except (UnreachableError, UnusableWordError) as error:
            raise NotStartedError(str(error)) from error
        except LinkLostError as error:
            # It may be on its way still: whoever looks will see, and keep it from starting late.
            raise UnknownError(str(error)) from error
        if ran.code:
            raise NotStartedError(f"it cannot be started: {ran.errors.strip() or f'exit code {ran.code}'}")
        try:
            async with asyncio.timeout(timeout_seconds):
                found = await self._follow(key, on_output)
        except TimeoutError:
            await self._end(key)
            raise UnknownError(f"it had not ended after {timeout_seconds:g} s and was told to") from None
        if found == "never":
            raise NotStartedError("it was started and gave up at once: the disk of the host may be full")
        return found

    async def look(self, key: str, timeout_seconds: float) -> Finished | Literal["never"]:
        """Return how a command ended that may have been started, or that it never will.

        Raises UnknownError when the host cannot be reached, or the command died without leaving a status.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._follow(key, None)
        except TimeoutError:
            raise UnknownError(f"it still runs after {timeout_seconds:g} s") from None

    async def script(self, text: str) -> Ran:
        """Run a script that leaves no state. Raises UnreachableError and LinkLostError."""
        return await self.shell.script(text)

    # -- Scripts -----------------------------------------------------------------------------------------

    def _job(self, key: str) -> str:
        run, _, step = key.partition("/")
        return f"umask 077\nrun={self.path(run)}\njob={self.path(run, step)}\n"

    def _launch(self, key: str, argv: Sequence[str], secret: str | None) -> str:
        feed = "</dev/null" if secret is None else ""
        pipe = "" if secret is None else f"printf '%s\\n' {word(secret)} | "
        command = words(argv)
        return f"""{self._job(key)}
mkdir -p "$run" || exit {_REFUSED}
mkdir "$job" 2>/dev/null || {{ [ -d "$job" ] && exit 0; mkdir "$job"; exit {_REFUSED}; }}
printf '%s\\n' {word(command)} > "$job/command" || exit {_REFUSED}
{pipe}setsid sh -c {word(_WRAPPER)} karma-step "$job" {command} {feed} >/dev/null 2>&1 &
exit 0
"""

    def _watch(self, key: str, offset_bytes: int) -> str:
        return f"""{self._job(key)}
at={offset_bytes} rounds=0 over=
[ -d "$job" ] || mkdir -p "$job" || exit {_REFUSED}
while :; do
    if [ -f "$job/status" ]; then over="status $(cat "$job/status")"
    elif [ -f "$job/pid" ]; then
        kill -0 "$(cat "$job/pid")" 2>/dev/null || {{ sleep 1; [ -f "$job/status" ] || over=lost; }}
    elif [ $rounds -ge 10 ]; then
        if mkdir "$job/start" 2>/dev/null; then over=never
        elif [ $rounds -ge 30 ] && [ ! -f "$job/pid" ]; then over=never; fi
    fi
    size=0; [ -f "$job/output" ] && size=$(wc -c < "$job/output")
    if [ "$size" -gt "$at" ]; then
        tail -c "+$((at + 1))" "$job/output" | head -c "$((size - at))"; at=$((size))
    fi
    [ "$over" ] && [ "$over" != "status " ] && break
    over=; rounds=$((rounds + 1)); sleep 0.1 2>/dev/null || sleep 1
done
echo "$over" >&2
"""

    async def _follow(self, key: str, on_output: OnOutput | None) -> Finished | Literal["never"]:
        """Follow a command to its end, through connections that break."""
        parts: list[str] = []

        def take(text: str) -> None:
            parts.append(text)
            if on_output is not None:
                on_output(text)

        for attempt in range(_TRIES):
            try:
                offset_bytes = len("".join(parts).encode())
                ran = await self.shell.script(self._watch(key, offset_bytes), take)
                break
            except (LinkLostError, UnreachableError) as error:
                if attempt + 1 == _TRIES:
                    raise UnknownError(str(error)) from error
                await asyncio.sleep(_RETRY_SECONDS)
        else:
            raise AssertionError
        last = (ran.errors.strip().splitlines() or [""])[-1]
        if last == "never":
            return "never"
        word, _, code = last.partition(" ")
        if word != "status" or not code.isdigit():
            raise NoStatusError(f"it left no status on the host ({last or f'exit code {ran.code}'})")
        return Finished(int(code), "".join(parts))

    async def _end(self, key: str) -> None:
        """Tell a command that takes too long to end; nobody counts on it."""
        script = f'{self._job(key)}[ -f "$job/pid" ] && kill -s TERM -- "-$(cat "$job/pid")"\n'
        try:
            await asyncio.wait_for(self.shell.script(script), _TRIES)
        except (LinkLostError, UnreachableError, TimeoutError):
            return
