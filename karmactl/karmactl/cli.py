"""`karmactl`: parse the command line, carry out one command, end with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from io import TextIOWrapper
from typing import Any, TextIO

import click

from karma.errors import describe_bug
from karmactl import build, contexts, settings
from karmactl.contexts import ContextFile
from karmactl.diagnostics import CtlError, Exit, Talk, usage
from karmactl.output import Output, Paper
from karmactl.run import DryRun, Run
from karmactl.table.entries import Command

DEFAULT_WIDTH = 80


def main() -> int:
    """Run karmactl on the process's own arguments, environment and streams; return the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that lacks a letter gets its number instead of an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    if "_KARMACTL_COMPLETE" in os.environ:
        from karmactl import shells  # noqa: PLC0415  only a shell at a Tab key pays for it

        shells.register()
    return run(sys.argv[1:], os.environ, sys.stdin, sys.stdout, sys.stderr)


def run(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
) -> int:
    """Carry out one command line and return the exit code."""
    talk = Talk(stderr, is_coloured=wants_colour(stderr, environ))
    try:
        invocation = parse(arguments, min(width_of(stdout, environ) or DEFAULT_WIDTH, build.MOST_WIDTH))
        if isinstance(invocation, build.Invocation):
            return carry_out(invocation, environ, stdin, stdout, talk)
        stdout.write(invocation.text + "\n")
        stdout.flush()
    except CtlError as error:
        talk.report(error)
        return error.code
    except KeyboardInterrupt:
        talk.say("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return Exit.OK
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        talk.report(CtlError(Exit.INTERNAL, what, fault="this machine", advice="make room, or mend the path"))
        return Exit.INTERNAL
    except Exception as error:  # noqa: BLE001  the last resort; its text may hold a token, so it is not shown
        talk.report(internal(error))
        return Exit.INTERNAL
    return Exit.OK


def internal(error: Exception) -> CtlError:
    """Return the error of a bug."""
    return CtlError(
        Exit.INTERNAL,
        describe_bug(error),
        fault="karmactl",
        advice="please report this line with the command that led to it",
    )


def parse(arguments: Sequence[str], help_width: int) -> build.Invocation | build.Help:
    """Return what a command line asks for. Raises CtlError for one that makes no sense."""
    try:
        asked: build.Invocation | build.Help = build.root().main(
            list(arguments), prog_name="karmactl", standalone_mode=False, terminal_width=help_width
        )
    except build.HelpAsked as help_asked:
        return build.Help(str(help_asked))
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "karmactl"
        raise usage(error.format_message(), f"`{path} --help` shows what it takes") from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return asked


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether a stream takes colours: a terminal, unless NO_COLOR or a dumb one."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def width_of(stream: TextIO, environ: Mapping[str, str]) -> int | None:
    """Return the columns of the terminal that a stream is, None where it is none."""
    if not stream.isatty():
        return None
    named = environ.get("COLUMNS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def carry_out(
    invocation: build.Invocation, environ: Mapping[str, str], stdin: TextIO, stdout: TextIO, talk: Talk
) -> int:
    """Run a command's handler and print what it returns. Raises CtlError."""
    command, flags = invocation.command, invocation.flags
    chosen = chosen_settings(command, flags, environ)
    talk.is_coloured = talk.is_coloured and not chosen["no_color"]
    is_coloured = wants_colour(stdout, environ) and not chosen["no_color"]
    fields = [name.strip() for name in (chosen["fields"] or "").split(",") if name.strip()]
    paper = Paper(width_of(stdout, environ), is_coloured)
    output = Output(stdout, chosen["output"] or "table", fields, paper)
    # Those that talk to no server do without, and doctor has a finding of it.
    needs_no_word = command.effect == "local" or command.name == "doctor"
    exposed = None if needs_no_word else settings.exposed_token(chosen)
    for note in (*chosen.notes, *filter(None, [exposed])):
        talk.warn(note)
    if chosen["verbose"] and command.effect != "local":
        _, token_source = settings.token(chosen, environ)
        token = f"token from {token_source}" if token_source else "no token"
        talk.say(f"{', '.join(chosen.nodes)} (from {chosen.nodes_source}), {token}")
    handler = load(command)

    def nested(arguments: Sequence[str]) -> int:
        return run(arguments, environ, stdin, stdout, talk.stream)

    with Run(command, chosen, flags, environ, output, talk, stdin, nested) as running:
        running.check_allowed()

        def once() -> Any:
            with translated(running):
                try:
                    return handler(running, **invocation.parameters)
                except DryRun as plan:
                    return plan.shown()

        if chosen["wait_until"]:
            from karmactl import waiting  # noqa: PLC0415  few commands wait

            waiting.wait_until(running, chosen["wait_until"])
        if chosen["watch"] and command.handler != "replication.watch":
            from karmactl import watching  # noqa: PLC0415  few commands are watched

            watching.watch(running, once, chosen["watch"])
        else:
            # Rows are made of answers while they are shown.
            with translated(running):
                output.show(once(), command.shape)
                output.flush()
        return running.exit_code


@contextmanager
def translated(running: Run) -> Iterator[None]:
    """Raise what comes of a server, or of its answers, as CtlError."""
    try:
        yield
    except (CtlError, BrokenPipeError):
        raise
    except Exception as error:  # noqa: BLE001  what is of neither goes on as it is
        from karmactl import failures  # noqa: PLC0415  only errors pay for it

        failures.raise_translated(error, running)


def chosen_settings(
    command: Command, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> settings.Settings:
    """Return the settings of a command. A local one needs no target, so no context can be wrong for it."""
    path = contexts.config_path(environ)
    if command.effect == "local":
        flags = {key: value for key, value in flags.items() if key != "context"}
        environ = {name: value for name, value in environ.items() if name != "KARMACTL_CONTEXT"}
        return settings.resolve(flags, environ, ContextFile(path))
    try:
        file = contexts.load(path)
    except CtlError as error:
        if not _stands_alone(command, flags, environ):
            raise
        environ = {name: value for name, value in environ.items() if name != "KARMACTL_CONTEXT"}
        chosen = settings.resolve(flags, environ, ContextFile(path))
        note = f"{error.message}; this command goes without contexts, since its nodes are named"
        return replace(chosen, notes=(*chosen.notes, note))
    return settings.resolve(flags, environ, file)


def _stands_alone(command: Command, flags: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether a command needs nothing of contexts: it only reads, and from nodes named by their addresses.

    One that writes needs to know whether a node is a production one, which then asks for its name.
    """
    words = flags.get("node") or environ.get("KARMACTL_NODES", "").replace(",", " ").split()
    is_named = bool(words) and all(":" in word for word in words)
    return command.effect == "read" and is_named and not flags.get("context")


def load(command: Command) -> Callable[..., Any]:
    """Return a command's handler, loading its module."""
    module, _, name = command.handler.rpartition(".")
    handler: Callable[..., Any] = getattr(import_module(f"karmactl.commands.{module}"), name)
    return handler
