"""A fair share of the event loop for whatever takes long.

Reads of a whole series, requests and replies of many kilobytes, and the server's own chores come as **jobs**:
functions that do a step of a few milliseconds at most and return whether it was the last one. A **turn**
does steps until its time is used up. Between two turns the loop serves everyone else, and if anyone used
that, the next turn waits for as long as the last one took: plain requests have at least half of the time,
however many others ask for much.

Jobs belong to a **share**, such as the address and the token of the client that asks. Shares take steps in
rotation, and so do the jobs of one share, so more connections get no more of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from karma.engine import Engine
from karma.engine.dispatch import Slices
from karma.errors import ErrorCode, RequestError
from karma.limits import LARGE_REQUEST_BYTES

TURN_SECONDS = 0.002
"""What a plain request may have to wait for a turn, but for the length of one step."""
TURN_STEPS = 64
"""Steps of a turn at most; only a clock that stands still, as in simulations, makes them count."""
LONGEST_PAUSE_SECONDS = 0.1

Job = Callable[[], bool]


class Turns:
    """The jobs in hand. `served` counts the requests executed so far, of anyone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stopwatch: Callable[[], float],
        served: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._stopwatch = stopwatch
        self._served = served
        self._shares: dict[str, deque[Job]] = {}
        """By share, those whose turn comes next first."""
        self._added: list[tuple[str, Job]] = []
        self._is_scheduled = False
        self._last_seconds = 0.0
        self._served_before = 0

    def add(self, share: str, job: Job) -> None:
        """Have a job done, in turns, until it returns True."""
        # Behind the turn in hand, if it is that which adds one: what it was answered leaves first.
        self._added.append((share, job))
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        pause = min(self._last_seconds, LONGEST_PAUSE_SECONDS)
        self._last_seconds = 0.0
        if pause > 0 and self._served() != self._served_before:
            self._loop.call_later(pause, self._take_turn)
        else:
            self._take_turn()

    def _take_turn(self) -> None:
        started = self._stopwatch()
        for share, job in self._added:
            self._shares.setdefault(share, deque()).append(job)
        self._added.clear()
        try:
            for _ in range(TURN_STEPS):
                self._take_step()
                self._last_seconds = self._stopwatch() - started
                if not self._shares or self._last_seconds >= TURN_SECONDS:
                    break
        finally:
            self._served_before = self._served()
            self._is_scheduled = bool(self._shares or self._added)
            if self._is_scheduled:
                self._loop.call_soon(self._begin)

    def _take_step(self) -> None:
        share = next(iter(self._shares))
        jobs = self._shares.pop(share)
        job = jobs.popleft()
        if jobs:
            self._shares[share] = jobs
        if not job():
            self._shares.setdefault(share, deque()).append(job)


def share_of(address: str, access: str) -> str:
    """Return whose part of the loop a client's long requests take: its host's, by what its token may do."""
    return f"{address.rpartition(':')[0]} {access}"


def first_of(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return the lines that one turn may take, at least one if there is any, and the others."""
    size = count = 0
    while count < len(lines) and (size := size + len(lines[count])) <= LARGE_REQUEST_BYTES:
        count += 1
    count = max(count, 1)
    return lines[:count], lines[count:]


class Tidying:
    """Has the store's chores done, in turns. `write` writes the entries of the pass, as chores need."""

    def __init__(self, turns: Turns, engine: Engine, write: Callable[[], object]) -> None:
        self._turns = turns
        self._engine = engine
        self._write = write
        self._is_running = False

    def begin(self) -> None:
        """Have chores done until there are none."""
        if not self._is_running:
            self._is_running = True
            self._turns.add("", self._do_step)

    def _do_step(self) -> bool:
        if self._engine.entries:
            self._write()
        store = self._engine.store
        if store.chores:
            store.do_chore()
        self._is_running = bool(store.chores)
        return not self._is_running


@dataclass(slots=True)
class Reading:
    """A large read, slice by slice."""

    engine: Engine
    slices: Slices
    processor_time: Callable[[], float]
    timeout_ms: int
    """How long it may work; its waits for others do not count. 0 is no limit."""
    worked_seconds: float = 0.0

    def take_slice(self) -> bytes | None:
        """Run one slice and return the reply when it is done."""
        if self.timeout_ms and self.worked_seconds > self.timeout_ms / 1000:
            self.slices.close()
            self.engine.counters.query_timeouts += 1
            message = f"The read took longer than query-timeout-ms ({self.timeout_ms}); ask for less"
            return self.engine.fail(RequestError(ErrorCode.QUERY_TIMEOUT, message))
        started = self.processor_time()
        try:
            counted = next(self.slices)
        except StopIteration as stop:
            reply: bytes = stop.value
            return reply
        except RequestError as problem:
            return self.engine.fail(problem)
        except Exception as error:  # noqa: BLE001 - as in Engine.execute
            return self.engine.internal_error(error)
        self.worked_seconds += counted * (self.processor_time() - started)
        return None
