"""The entry of `karmactl` and of `python -m karmactl`."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

START_OBJECTS = 50_000
"""Objects between two collections. Python's 700 would collect a dozen times while modules load:
5 ms, and nothing is found."""


def main() -> NoReturn:
    """Run karmactl as a program; with code 2 where only the server's packages are installed."""
    gc.set_threshold(START_OBJECTS)
    try:
        import click  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        sys.stderr.write(
            "error: karmactl needs packages that the server does without\n"
            "  fault: configuration\n"
            "  next:  pip install 'karma[ctl]'\n"
        )
        sys.exit(2)
    try:
        from karmactl import cli  # noqa: PLC0415

        code = cli.main()
    except KeyboardInterrupt:
        # Before anything could handle it.
        code = 130
    # Everything is flushed and closed. Taking the interpreter apart would cost every command 10 ms, and flush
    # stdout once more, which must not complain when its reader has gone.
    os._exit(code)


def dashboard() -> NoReturn:
    """Run `karma-tui`, which is `karmactl tui`."""
    sys.argv.insert(1, "tui")
    main()


if __name__ == "__main__":
    main()
