"""Power cuts all along a trace, as both gates of power loss make them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from faults.power import Contents, Machine, write_out
from faults.system import Event

Cut = tuple[int, Contents]
"""The event behind which the power is cut, and what that leaves."""


def cuts(
    events: list[Event], machine: Machine, apply: Callable[[Event], None], random: Random, states: int
) -> Iterator[Cut]:
    """Apply events one by one, and yield so many cuts in all, evenly spread and no two alike."""
    seen: set[int] = set()
    left = states
    for at, event in enumerate(events):
        apply(event)
        due = left / (len(events) - at)
        for _ in range(int(due) + (random.random() < due % 1)):
            for _ in range(6):
                contents = machine.crashed(random)
                print_of = hash(tuple(contents.items()))
                if print_of not in seen:
                    seen.add(print_of)
                    left -= 1
                    yield at, contents
                    break


@contextlib.contextmanager
def explained(cut: Cut, events: list[Event], kept: Path, repeat: str) -> Iterator[None]:
    """Let a failure tell where it was and how to repeat it, and keep the directory that the cut left."""
    try:
        yield
    except BaseException as error:
        at, contents = cut
        # A server is no clockwork: its seed gives the same requests and cuts, not always the same calls.
        write_out(contents, kept)
        calls = "\n".join(
            f"{number}: {each.kind} {each.file}{each.path} {each.new_path} {each.data[:90]!r} {each.number}"
            for number, each in enumerate(events[max(at - 12, 0) : at + 1], max(at - 12, 0))
        )
        error.add_note(
            f"power cut behind event {at} of {len(events)}:\n{calls}\nwhat it left is in {kept}\n{repeat}"
        )
        raise
