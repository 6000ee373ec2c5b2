"""What all tests share."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import missing

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets its background jobs ignore Ctrl-C, and so would what they start: tests would wait.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def needs() -> Callable[[str], Path]:
    """`needs("strace")` → the path of an outside tool. Without the tool: skipped here, failed in CI."""

    def find(tool: str) -> Path:
        path = shutil.which(tool)
        return Path(path) if path is not None else missing(f"needs {tool}, which is not installed")

    return find
