"""A data directory without a server: `karma check` looks at all of it, `karma repair` mends what it can.

- `reading` looks at files one by one and goes on behind what is damaged: the door for tools that read a log
  or a directory;
- `check` puts together what a start of the server would find;
- `repair` plans the steps from that, shows what each would lose, and carries them out;
- `command` is the command line of both.

Nothing here changes a file but `repair`, and it deletes none.
"""

from collections.abc import Callable, Sequence

from karma.offline.reading import iterate_log, load, read_log

__all__ = ["iterate_log", "load", "main", "read_log"]


def main(
    arguments: Sequence[str],
    write: Callable[[str], object],
    talk: Callable[[str], object],
    clock: Callable[[], float],
) -> int:
    """Run a command; see `command.main`. Tools that only read do not load it."""
    from karma.offline import command  # noqa: PLC0415

    return command.main(arguments, write, talk, clock)
