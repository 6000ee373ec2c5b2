r"""shell: the commands of the table typed one after another, with completion, history and hints.

A line is what would follow `karmactl`, taken apart as a POSIX shell would and parsed by the same table. What
begins with a backslash is the shell's own: \watch, \timing, \?, \q.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.shell_completion import ShellComplete, split_arg_string

from karmactl import build, contexts, settings, table
from karmactl.diagnostics import CtlError, Exit, suggestion, usage
from karmactl.run import Run
from karmactl.settings import GLOBALS
from karmactl.table.entries import Command

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings

HELP = r"""A line is what would follow `karmactl`: series top api_requests -n 5

  Tab            completes commands, options, series, contexts and files
  Up, Ctrl-R     go through the history, search in it; Right takes the grey hint
  Enter          runs the line; inside quotes or behind a backslash it goes on below
  Ctrl-C         gives up a line, or ends a command; Ctrl-D leaves

  \watch [N]     behind a command, or alone for the last one: again every N seconds (2)
  \timing        say how long each command took, or no longer
  \?             this; `help` lists the commands, `help series top` explains one
  \q             leaves, as exit and quit do
"""
WATCH = re.compile(r"^(?P<line>.*?)\s*\\watch(?:\s+(?P<seconds>\S+))?\s*$", re.DOTALL)
WATCH_SECONDS = "2"
OWN = ("\\watch", "\\timing", "\\?", "\\q", "help", "exit", "quit")
LEAVE = frozenset({"\\q", "exit", "quit"})


def shell(run: Run) -> None:
    """Read and run lines until somebody leaves."""
    need_terminal(run)
    _Shell(run).loop()


def need_terminal(run: Run) -> None:
    """Raise CtlError where no shell can be: without a terminal, or without prompt_toolkit."""
    if not (run.stdin.isatty() and run.talk.is_terminal):
        raise CtlError(
            Exit.REFUSED,
            "the shell needs a terminal",
            fault="command line",
            advice="in a script, call karmactl once for each command",
        )
    try:
        from prompt_toolkit import PromptSession  # noqa: PLC0415,F401  heavy, and optional
    except ImportError as error:
        raise CtlError(
            Exit.USAGE,
            "the shell needs prompt_toolkit, which is not installed",
            fault="configuration",
            advice="pip install 'karma[ctl]'",
        ) from error


class _Shell:
    """What the shell remembers between lines."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._base = tuple(_given(run))
        self._last: tuple[str, ...] = ()
        self._is_timing = False

    def loop(self) -> None:
        """Prompt, run, again, until somebody leaves."""
        session = self._session()
        self._run.talk.say("\\? explains the shell, \\q leaves it")
        while True:
            try:
                line = session.prompt(
                    self._prompt(), bottom_toolbar=lambda: hint(session.default_buffer.text)
                )
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                if not self._carry_out(line.strip()):
                    return
            except CtlError as error:
                self._run.talk.report(error)

    def _carry_out(self, line: str) -> bool:
        """Run one line; return whether to go on. Raises CtlError for a line that cannot be taken apart."""
        if line in LEAVE:
            return False
        found = WATCH.match(line)
        if found is not None:
            words = split(found["line"]) or self._last
            if not words:
                raise usage("there is no command to watch yet", "as: series top api_requests \\watch 2")
            self._call((*words, "--watch", found["seconds"] or WATCH_SECONDS))
            self._last = words
        elif line == "\\timing":
            self._is_timing = not self._is_timing
            self._run.talk.say(f"timing is {'on' if self._is_timing else 'off'}")
        elif line == "\\?":
            self._run.output.write(HELP)
            self._run.output.flush()
        elif line.startswith("\\"):
            word = line.split(maxsplit=1)[0]
            raise usage(f"the shell has no {word}", f"{suggestion(word, OWN)} \\? lists all".strip())
        elif words := split(line):
            if words[0] == "help":
                words = (*words[1:], "--help")
            elif words[0] == "shell":
                raise usage("this is the shell already", "\\q leaves it")
            self._call(words)
            self._last = words
        return True

    def _call(self, words: Sequence[str]) -> None:
        begun = time.perf_counter()
        self._run.nested((*self._base, *words))
        if self._is_timing:
            self._run.talk.say(f"took {(time.perf_counter() - begun) * 1000:.1f} ms")

    # -- The line being typed ------------------------------------------------------------------

    def _session(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession  # noqa: PLC0415
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory  # noqa: PLC0415
        from prompt_toolkit.history import FileHistory  # noqa: PLC0415

        return PromptSession(
            history=FileHistory(str(history_file(contexts.state_path(self._run.environ), "history"))),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_completer(self._base),
            complete_in_thread=True,
            complete_while_typing=False,
            enable_history_search=True,
            multiline=True,
            prompt_continuation="... ",
            key_bindings=enter_keys(lambda text: is_open(text) and not WATCH.match(text)),
        )

    def _prompt(self) -> StyleAndTextTuples:
        """Where commands go now: `context use` may have changed it."""
        path = contexts.config_path(self._run.environ)
        try:
            chosen = settings.resolve(self._run.flags, self._run.environ, contexts.load(path))
        except CtlError:
            return [("ansired", "no target"), ("", "> ")]
        if chosen.production:
            return [("bg:ansired ansiwhite bold", f" {chosen.production.name} "), ("", "> ")]
        name = chosen.context.name if chosen.context else ", ".join(chosen.nodes)
        return [("bold", name), ("", "> ")]


def _given(run: Run) -> Iterator[str]:
    """The global options that the shell was started with, for every command in it."""
    for setting in GLOBALS:
        value = run.flags.get(setting.key)
        if value in (None, False, ()):
            continue
        if setting.kind == "flag":
            yield setting.flag
        else:
            for one in value if setting.many else (value,):
                yield from (setting.flag, str(one))


def history_file(folder: Path, name: str) -> Path:
    """Return the file of lines typed before, which others need not read."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / name
    path.touch(mode=0o600)
    return path


def is_open(text: str) -> bool:
    """Return whether a line goes on below: inside quotes, or behind a backslash."""
    if (len(text) - len(text.rstrip("\\"))) % 2:
        return True
    try:
        shlex.split(_joined(text))
    except ValueError:
        return True
    return False


def split(text: str) -> tuple[str, ...]:
    """Return the words of a line. Raises CtlError for quotes without an end."""
    try:
        return tuple(shlex.split(_joined(text)))
    except ValueError as error:
        raise usage(f"this line has no end: {error}", "close the quotes") from error


def _joined(text: str) -> str:
    return text.replace("\\\n", " ")


def enter_keys(goes_on: Callable[[str], bool]) -> KeyBindings:
    """Return the key Enter: it takes a completion, goes on below if `goes_on(text)`, or ends the input."""
    from prompt_toolkit.filters import is_searching  # noqa: PLC0415
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        elif goes_on(buffer.text):
            buffer.newline()
        else:
            buffer.validate_and_handle()

    return keys


# -- Help while typing -----------------------------------------------------------------------------------


def hint(text: str) -> str:
    """Return what is known about the command that a line begins with, "" before it is one."""
    found = _command(split_arg_string(_joined(text)))
    if found is None:
        return ""
    arguments = [
        one.name.upper() + ("..." if one.many else "")
        if one.required
        else f"[{one.name.upper()}{'...' if one.many else ''}]"
        for one in found.arguments
    ]
    return f"{' '.join([found.name, *arguments])}   {found.help}"


def _command(words: Sequence[str]) -> Command | None:
    path = tuple(word for word in words if not word.startswith("-"))
    return next(
        (table.BY_PATH[path[:end]] for end in range(len(path), 0, -1) if path[:end] in table.BY_PATH), None
    )


def proposals(base: Sequence[str], text: str) -> list[tuple[str, str, int]]:
    """Return (word, help, how many letters before the cursor it replaces) for the text before the cursor."""
    text = _joined(text)
    start = _last_word(text)
    raw = text[start:]
    words = split_arg_string(text[:start])
    if not words and raw.startswith("\\"):
        return [(word, "", len(raw)) for word in OWN if word.startswith(raw)]
    if words[:1] == ["help"]:
        words = words[1:]
    incomplete = "".join(split_arg_string(raw))
    completer = ShellComplete(build.root(), {}, "karmactl", "_KARMACTL_COMPLETE")
    found = completer.get_completions([*base, *words], incomplete)
    return [(shlex.quote(one.value), one.help or "", len(raw)) for one in found if one.type == "plain"]


def _last_word(text: str) -> int:
    """Where the word begins that is being typed; blanks inside quotes do not end one."""
    start = 0
    quote = ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char.isspace():
            start = at + 1
    return start


def _completer(base: Sequence[str]) -> Any:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter  # noqa: PLC0415
    from prompt_toolkit.document import Document  # noqa: PLC0415

    class _Completer(Completer):
        """The table's words and the server's names, as in any shell; else files."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            found = proposals(base, text)
            for word, meta, length in found:
                yield Completion(word, -length, display_meta=meta)
            word = text[_last_word(text) :]
            if not found and word and not word.startswith(("-", "\\")):
                yield from PathCompleter(expanduser=True).get_completions(Document(word), complete_event)

    return _Completer()
