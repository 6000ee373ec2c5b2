"""Time that jumps: event loops whose clock stands still while they work, and goes on to the next timer.

Each process of a simulation has a `VirtualLoop` of its own, so that a crash is no more than to let go of it:
what was pending there never runs. The `World` lets them take turns, in an order that the seed decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from asyncio import events
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from heapq import heappop
from random import Random
from typing import Any

START_UNIX = 1_795_253_093.0
"""2026-11-21: time in a simulation begins here, whenever it runs."""
_MAX_STEPS = 400_000
"""A history has about ten thousand; more is a loop that never comes to rest."""


class World:
    """What everything in a simulation shares: the seed's choices, the time, the trace."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1_000.0
        """Seconds of every loop's clock."""
        self.slept = 0.0
        """How far the time of day is ahead of the other clocks, in seconds."""
        self.loops: list[VirtualLoop] = []
        self.trace: list[str] = []
        self.bugs: list[str] = []
        """What went wrong, as sentences: empty when the simulation shows what was promised."""

    def unix(self) -> float:
        """Return the time of day, in unix seconds."""
        return START_UNIX + self.now + self.slept

    def note(self, *what: object) -> None:
        """Add an event to the trace."""
        self.trace.append(f"{self.now:.6f} " + " ".join(map(str, what)))

    def fail(self, what: str) -> None:
        """Note a broken promise."""
        self.note("BUG", what)
        self.bugs.append(what)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the trace, equal for equal histories."""
        return sha256("\n".join(self.trace).encode()).hexdigest()

    def chance(self, probability: float) -> bool:
        """Let the seed decide."""
        return self.random.random() < probability

    def run(self, is_over: Callable[[], bool], until: float = float("inf")) -> bool:
        """Let everything run until a condition holds; False when the time is up first, or nothing is left."""
        for _ in range(_MAX_STEPS):
            if is_over():
                return True
            ready = [loop for loop in self.loops if loop.is_ready]
            if not ready:
                due = min([loop.next_timer for loop in self.loops], default=float("inf"))
                if due > until or due == float("inf"):
                    self.now = max(self.now, min(until, due)) if until != float("inf") else self.now
                    return is_over()
                self.now = max(self.now, due)
                ready = [loop for loop in self.loops if loop.next_timer <= self.now]
            (ready[0] if len(ready) == 1 else self.random.choice(ready)).step()
        raise AssertionError(f"no end after {_MAX_STEPS} steps, at {self.now:.3f} s")


class _NoSelector:
    """There is nothing outside to wait for."""

    def select(self, _timeout: float | None) -> list[Any]:
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of one process. Its network is the simulated one, its threads are turns of its own."""

    # What asyncio keeps to itself, of which its type stubs know nothing.
    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _run_once: Callable[[], None]

    def __init__(self, world: World, network: Any = None, host: str = "") -> None:
        super().__init__()
        self.world = world
        self.network = network
        self.host = host
        self.signals: dict[int, Callable[..., object]] = {}
        self._selector = _NoSelector()
        world.loops.append(self)

    # -- Turns -----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether something can run now."""
        return bool(self._ready) or self.next_timer <= self.world.now

    @property
    def next_timer(self) -> float:
        """When the next timer is due, infinity without one."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heappop(scheduled)._scheduled = False
        return scheduled[0]._when if scheduled else float("inf")

    def step(self) -> None:
        """Run everything that is ready, once."""
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)

    def time(self) -> float:
        """Return the time, in seconds."""
        return self.world.now

    def abandon(self) -> None:
        """End as a process that is killed: nothing that is pending runs on."""
        self.world.loops.remove(self)
        with warnings.catch_warnings():
            # Of coroutines that somebody would have awaited.
            warnings.simplefilter("ignore", RuntimeWarning)
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                # Now, not when the collector comes by; a few wait once more while they are closed.
                with contextlib.suppress(RuntimeError):
                    coroutine.close()
        self.close()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # -- What asyncio's own loop has of the system ---------------------------------------------------------

    def run_in_executor(self, _: Any, function: Callable[..., Any], *arguments: Any) -> Any:  # type: ignore[override]
        """Run a job at once or later, and let its result arrive later still: what a thread might do."""
        future: asyncio.Future[Any] = self.create_future()
        random = self.world.random

        def arrive(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            try:
                result = function(*arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
                self.call_later(random.random() * self.network.slowest_job_seconds, arrive, None, error)
            else:
                self.call_later(random.random() * self.network.slowest_job_seconds, arrive, result, None)

        if random.random() < 0.5:
            work()
        else:
            self.call_later(random.random() * self.network.slowest_job_seconds, work)
        return future

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *_: Any) -> None:  # type: ignore[override]
        """Remember what a signal does."""
        self.signals[sig] = callback

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """Listen on the simulated network."""
        return self.network.listen(self, host, port, protocol_factory)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """Connect over the simulated network."""
        return await self.network.connect(self, host, port, protocol_factory)
