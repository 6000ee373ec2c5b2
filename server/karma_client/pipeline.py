"""Many requests, few round trips."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from karma_client.binding import Queueing
from karma_client.calls import Call, Pending
from karma_client.core import Core
from karma_client.network import run
from karma_client.operations import Operations
from karma_client.settings import Timeouts

T = TypeVar("T")


class _Queue(Queueing, Operations):
    """What both pipelines share: the queue, and whose errors still have to be told."""

    def __init__(self, core: Core, timeouts: Timeouts) -> None:
        self._core = core
        self._timeouts = timeouts
        self._waiting: list[Pending[Any]] = []
        self._sent: list[Pending[Any]] = []

    def _operate(self, call: Call[T]) -> Pending[T]:
        pending = Pending(call)
        self._waiting.append(pending)
        return pending

    def __len__(self) -> int:
        """Return how many requests wait for the flush."""
        return len(self._waiting)

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        # Those whose outcome somebody asked for, or that succeeded, need not be kept for the end.
        self._sent = [pending for pending in self._sent if pending.unseen_error] + waiting
        await self._core.settle(waiting, self._timeouts)

    async def _end(self, kind: type[BaseException] | None) -> None:
        if kind is not None:
            self._waiting.clear()
            return
        await self._flush()
        for pending in self._sent:
            if pending.unseen_error is not None:
                raise pending.unseen_error


class Pipeline(_Queue):
    """Collects requests and sends them together; see `Client.pipeline`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        run(self._end(kind))

    def flush(self) -> None:
        """Send what waits and give each request its outcome. A request's own error shows in its
        `result()`.
        """
        run(self._flush())


class AsyncPipeline(_Queue):
    """Collects requests and sends them together; see `AsyncClient.pipeline`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._end(kind)

    async def flush(self) -> None:
        """Send what waits and give each request its outcome. A request's own error shows in its
        `result()`.
        """
        await self._flush()
