"""Completion with hostile names on real terminals: the word that is inserted is the name, and never code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ctl import Terminal
from harness import Server, until

from karmactl import completion
from karmactl.commands.completion import script

ODD = (
    "$(touch PWNED)", "`touch PWNED`", ";touch PWNED;", "|touch PWNED", "&touch PWNED&", ">PWNED",
    "<(touch PWNED)", "${HOME}", "$HOME", "two  words ", "it's", 'say "x"', "*", "?[a-z]*", "{a,b}",
    "back\\slash\\", "a,b,", "c:d:", "e=f=", "#", "~", "(touch PWNED)", "'$(touch PWNED)'", "%s%n",
    "é\u4e2d", "plain",
)  # fmt: skip
NAMES = [f"n{number:02}{odd}" for number, odd in enumerate(ODD)]
SHELLS = {
    "bash": ("--norc", "--noprofile", "-i"),
    "zsh": ("-o", "no_global_rcs", "-i"),
    "fish": ("--private", "-i"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("completion") / "data") as server:
        for name in NAMES:
            server.ask("tree.create", series=name)
        yield server


class Keyboard:
    """A shell with completion, in a folder where what it runs leaves its words."""

    def __init__(self, folder: Path, server: Server, shell: str, program: Path) -> None:
        self.folder = folder
        self._count = 0
        (folder / "bin").mkdir()
        tool = folder / "bin" / "karmactl"
        # Completion is karmactl's own; what is run says only which words it got.
        tool.write_text(
            f'#!/bin/sh\n[ "$_KARMACTL_COMPLETE" ] && {{ {sys.executable} {folder}/patient.py; '
            f": > {folder}/answered; exit; }}\n"
            f'for each do printf "%s\\0" "$each"; done > {folder}/words.new\n'
            f"mv {folder}/words.new {folder}/words\n"
        )
        tool.chmod(0o755)
        # On a busy machine the server may need longer than a person would wait.
        (folder / "patient.py").write_text(
            "import sys\nfrom karmactl import __main__, completion\n"
            "sys.argv = ['karmactl']\ncompletion.TIMEOUT_SECONDS = 30\n__main__.main()\n"
        )
        (folder / "_karmactl").write_text(script(None, shell))  # type: ignore[arg-type]
        (folder / ".zshrc").write_text(
            f"PROMPT='ready> '\nfpath=({folder} $fpath)\nautoload -U compinit\ncompinit -u -d {folder}/dump\n"
            # Keys that are there already must not make a Tab a letter, as of a text that is pasted.
            "zstyle ':completion:*' insert-tab false\n"
        )
        config = folder / "fish" / "config.fish"
        config.parent.mkdir()
        config.write_text(
            f"function fish_prompt; echo 'ready> '; end\nset -g fish_greeting\nsource {folder}/_karmactl\n"
        )
        environ = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "ZDOTDIR": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            "KARMACTL_NODES": f"127.0.0.1:{server.port}",
            "TERM": "dumb" if shell == "zsh" else "xterm",
            "LANG": "C.UTF-8",
            "PS1": "ready> ",
        }
        command = ["env", "-C", str(folder), str(program), *SHELLS[shell]]
        self.terminal = Terminal(environ, *command)
        self.terminal.wait_for("ready> ")
        if shell == "bash":
            self.terminal.type("source ./_karmactl; bind 'set enable-bracketed-paste off'\r")

    def complete(self, start: str) -> list[str]:
        """Type a command whose last word is completed; the words it ran with."""
        self._count += 1
        (self.folder / "words").unlink(missing_ok=True)
        (self.folder / "answered").unlink(missing_ok=True)
        self.terminal.type(f"karmactl series info {start}\t")
        until((self.folder / "answered").exists)
        self.terminal.type(f" ; echo ran-''{self._count}\r")
        self.terminal.wait_for(f"ran-{self._count}")
        self.terminal.seen = self.terminal.seen.rpartition(f"ran-{self._count}")[2]
        self.terminal.wait_for("ready> ")
        return (self.folder / "words").read_text().split("\0")[:-1]

    def close(self) -> None:
        os.kill(self.terminal.pid, signal.SIGKILL)
        self.terminal.end()


@pytest.fixture(params=SHELLS)
def keyboard(
    request: pytest.FixtureRequest, tmp_path: Path, server: Server, needs: Callable[[str], Path]
) -> Iterator[Keyboard]:
    found = Keyboard(tmp_path, server, request.param, needs(request.param))
    yield found
    found.close()


@pytest.mark.timeout(300)
def test_a_completed_name_is_one_word_and_never_code(keyboard: Keyboard) -> None:
    for name in NAMES:
        words = keyboard.complete(name[:3])
        assert words == ["series", "info", name], keyboard.terminal.seen[-2000:]
    assert not list(keyboard.folder.rglob("PWNED"))


def test_what_no_line_can_hold_is_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [
        "a\nb",
        "a\r",
        "a\x1b[31m",
        "a\x9b31m",
        "a\u202eb",
        "a\u2028b",
        "a\u200bb",
        "a\ud800",
        "-rf",
        "--yes",
    ]
    monkeypatch.setattr(completion, "_ask", lambda *_: [*hidden, "a plain one"])
    assert completion.propose("series", {}, "") == [("a plain one", "")]
