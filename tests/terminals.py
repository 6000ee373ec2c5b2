"""A real terminal, for programs that draw: tmux sends keys and tells what is on the screen."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 30.0


class Tmux:
    """A terminal of 120 by 40 letters with a shell in it."""

    def __init__(self, tmux: Path, socket: Path) -> None:
        self._command = [str(tmux), "-S", str(socket), "-f", "/dev/null"]
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(socket.parent),
            "PS1": "ready> ",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
        }
        self(
            "new-session",
            "-d",
            "-x",
            "120",
            "-y",
            "40",
            "env",
            "-i",
            *(f"{k}={v}" for k, v in environ.items()),
            "sh",
        )

    def __call__(self, *words: str) -> str:
        return subprocess.run(
            [*self._command, *words], capture_output=True, text=True, check=True, timeout=SECONDS
        ).stdout

    def type(self, *keys: str) -> None:
        """Press keys by tmux's names; texts are typed."""
        self("send-keys", *keys)

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def ask(self, what: str) -> str:
        """Return a variable of the pane."""
        return self("display-message", "-p", f"#{{{what}}}").strip()

    def see(self, *texts: str) -> None:
        self.until(lambda: all(text in self.screen() for text in texts), str(texts))

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}\n{self.screen()}"
            time.sleep(0.05)

    def is_clean(self) -> bool:
        """Whether the terminal is as a program must leave it."""
        flags = [self.ask(name) for name in ("alternate_on", "mouse_any_flag", "cursor_flag")]
        return flags == ["0", "0", "1"] and "ready>" in self.screen()
