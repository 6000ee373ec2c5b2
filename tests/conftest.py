"""What all tests share."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
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


@pytest.fixture
def tiny_disk(tmp_path: Path, needs: Callable[[str], Path]) -> Iterator[Path]:
    """A file system of its own, two megabytes large."""
    if os.geteuid() != 0:
        missing("needs root, to mount a small file system")
    mount, umount = needs("mount"), needs("umount")
    folder = tmp_path / "tiny"
    folder.mkdir()
    found = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if found.returncode:
        missing("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run([umount, "-l", folder], check=True)
