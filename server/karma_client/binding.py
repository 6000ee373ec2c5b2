"""Operations written once, for every kind of client.

An operation is a method that builds a `Call`. What calling it does depends on whose method it is: a blocking
client returns the response, an asyncio client an awaitable of it, a pipeline a `Pending`. Type checkers see
the same: the parameters are those of the builder, and the result follows from the owner.

    class Counters:
        @operation
        def sum(self, series: str, key: int) -> Call[int]: ...

    client.sum("api", 42)           # int
    await async_client.sum("api", 42)  # int
    pipeline.sum("api", 42)         # Pending[int]

Work of several calls is a `task` (a coroutine) or a `stream` (an async generator) over `self._perform`;
blocking clients run these to their end, or item by item.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import signature
from itertools import chain, islice
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from karma_client.calls import Call, Pending
from karma_client.core import Core
from karma_client.errors import InvalidArgumentError
from karma_client.network import run
from karma_client.settings import Timeouts

P = ParamSpec("P")
T = TypeVar("T")


class Performer:
    """Performs calls over a core, within time limits."""

    def __init__(self, core: Core, timeouts: Timeouts) -> None:
        self._core = core
        self._timeouts = timeouts

    async def _perform(self, call: Call[T]) -> T:
        return await self._core.perform(call, self._timeouts)


class Blocking(Performer):
    """A client whose operations return their response."""

    def _operate(self, call: Call[T]) -> T:
        return run(self._perform(call))

    def _work(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return run(coroutine)

    def _iterate(self, generator: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                try:
                    item = run(generator.__anext__())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            run(generator.aclose())


class Awaiting(Performer):
    """A client whose operations return awaitables."""

    def _operate(self, call: Call[T]) -> Coroutine[Any, Any, T]:
        return self._perform(call)

    def _work(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return coroutine

    def _iterate(self, generator: AsyncGenerator[T, None]) -> AsyncIterator[T]:
        return generator


class Queueing:
    """A pipeline: operations wait in it until it is flushed."""

    def _operate(self, call: Call[T]) -> Pending[T]:
        raise NotImplementedError


@cache
def _required(build: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the parameters of an operation in their order, and those whose default is not None."""
    parameters = dict(islice(signature(build).parameters.items(), 1, None))
    return tuple(parameters), frozenset(name for name, each in parameters.items() if each.default is not None)


def _refuse_none(build: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for None where it does not mean "left out".

    A field that is None stays out of the request, where a missing amount counts as 1.
    """
    names, required = _required(build)
    for name, value in chain(zip(names, args, strict=False), kwargs.items()):
        if value is None and name in required:
            raise InvalidArgumentError(f"{build.__name__}: {name} must not be None; nothing was sent")


class operation(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes an operation of a method that builds a `Call`."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        @wraps(build)
        def method(owner: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            for argument in (*args, *kwargs.values()):
                if argument is None:
                    _refuse_none(build, args, kwargs)
                    break
            return owner._operate(build(owner, *args, **kwargs))

        self.build = build
        self.__doc__ = build.__doc__
        self._method = method

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[Any, P], Call[T]]: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, instance: Queueing, owner: type) -> Callable[P, Pending[T]]: ...
    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return self.build if instance is None else MethodType(self._method, instance)


class task(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes a method of both clients of a coroutine function over `self._perform`."""

    def __init__(self, work: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        @wraps(work)
        def method(owner: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._work(work(owner, *args, **kwargs))

        self.work = work
        self.__doc__ = work.__doc__
        self._method = method

    @overload
    def __get__(
        self, instance: None, owner: type
    ) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return self.work if instance is None else MethodType(self._method, instance)


class stream(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes an iterator of both clients of an async generator function over `self._perform`."""

    def __init__(self, generate: Callable[Concatenate[Any, P], AsyncGenerator[T, None]]) -> None:
        @wraps(generate)
        def method(owner: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return owner._iterate(generate(owner, *args, **kwargs))

        self.generate = generate
        self.__doc__ = generate.__doc__
        self._method = method

    @overload
    def __get__(
        self, instance: None, owner: type
    ) -> Callable[Concatenate[Any, P], AsyncGenerator[T, None]]: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, instance: Awaiting, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return self.generate if instance is None else MethodType(self._method, instance)
