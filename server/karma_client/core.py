"""The client's logic, written once: which node, which connection, what may be sent again.

A single call is a pipeline of one. `Core.settle` gives every pending call its outcome:

1. Requests leave in windows, each small enough that the server can hold all its replies. The replies of one
   window are read before the next is sent.
2. A reply settles its call, unless it is a refusal that somebody else, or the same node later, would not give
   (a slave's, a fenced or paused node's, an overloaded server's). A refused request was not applied, so it is
   sent again, with or without an idempotency key.
3. A lost connection settles the writes that had left without an idempotency key: nobody knows whether they
   were applied (`UnknownOutcomeError`). If there is none, everything unanswered is sent again.
4. All of it within the time of the call. Whoever has had replies gets the time anew: a long pipeline is only
   given up when nothing moves.

Coroutines here await nothing but the `Network` (see there), so they serve both clients.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from karma_client.calls import Call, Exchange, Pending, an_object, read, take_reply
from karma_client.errors import (
    ClosedError,
    ForbiddenError,
    InvalidArgumentError,
    KarmaError,
    NoMasterError,
    OverloadedError,
    ProtocolError,
    ReadOnlyError,
    ReplyError,
    RequestTimeoutError,
    RequestTooLargeError,
    TlsError,
    UnauthorizedError,
    UnknownOutcomeError,
    UnreachableError,
)
from karma_client.network import Channel, Network, describe, tls_cause
from karma_client.nodes import Node
from karma_client.policy import Answer, backoff_seconds, choose_master, sources
from karma_client.settings import Settings, Timeouts

T = TypeVar("T")

WINDOW_BYTES = 65_536
WINDOW_REQUESTS = 512
"""Most that is sent before replies are read. The server may hold max-client-buffer-bytes (16 MiB) of replies
for one connection; 512 replies of 32 kB stay below, and one round trip per 512 requests costs nothing
measurable."""

UNKNOWN_IDLE_SECONDS = 2.5
"""How long a connection may rest before reuse: half of the server's default read-timeout, until its stats say
more."""

LAST_ATTEMPT_SECONDS = 1.0
"""The least time in which another attempt is begun, or a quarter of the call's if that is less."""

_STATUS = read("replication.status", an_object)


class Setback(Exception):  # noqa: N818 - no error by itself: the next attempt may succeed
    """An attempt left calls open that may be sent again. `error` is theirs when no attempt is left.

    `is_in_step`: every reply of the connection came, so it can be used again.
    """

    def __init__(self, error: KarmaError, *, is_in_step: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.is_in_step = is_in_step


class Core:
    """One client's connections and what it knows of its nodes. Safe to use from several threads or tasks."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self.settings = settings
        self.network = network
        self.is_closed = False
        self.idle_seconds = UNKNOWN_IDLE_SECONDS
        self._idle: dict[Node, deque[tuple[float, Channel]]] = {}
        self._hints: tuple[Node, ...] = ()
        """Nodes that others named as the master, as far as hints are followed."""
        self.last_node: Node | None = None
        """The node that answered last."""
        self._master: Node | None = None
        if len(settings.nodes) == 1:
            self._master = settings.nodes[0]
        self._first = 0
        """Where to begin among the nodes, for target "any"."""

    async def perform(self, call: Call[T], timeouts: Timeouts) -> T:
        """Return the response of one call, or raise what `settle` found."""
        pending = Pending(call)
        await self.settle([pending], timeouts)
        return pending.result()

    async def settle(self, pendings: Sequence[Pending[Any]], timeouts: Timeouts) -> None:
        """Give every call its outcome, in order."""
        if not pendings:
            return
        budget_seconds = max(
            (timeouts.slow_seconds if pending.call.is_slow else timeouts.call_seconds)
            + pending.call.held_seconds
            for pending in pendings
        )
        try:
            await self._settle_in_turn(pendings, budget_seconds)
        except BaseException:
            # A cancelled task, Ctrl-C, or a token function that failed.
            _fail(pendings, UnknownOutcomeError("interrupted: the request may or may not have been applied"))
            raise

    async def _settle_in_turn(self, pendings: Sequence[Pending[Any]], budget_seconds: float) -> None:
        if self.is_closed:
            _fail(pendings, ClosedError("the client is closed: connect again"))
            return
        if self.settings.is_read_only:
            pendings = _reads_only(pendings)
        if not pendings:
            return
        if not await self.network.acquire(budget_seconds):
            size = self.settings.pool_size
            _fail(
                pendings,
                RequestTimeoutError(
                    f"none of the {size} connections (pool_size) got free in {budget_seconds:g} s"
                ),
            )
        else:
            try:
                await self._settle(pendings, budget_seconds)
            finally:
                self.network.release()

    def close(self) -> None:
        """Close idle connections now, and those under way when they are done."""
        self.is_closed = True
        for channels in self._idle.values():
            while channels:
                channels.pop()[1].close()

    # -- Attempts ------------------------------------------------------------------------------

    async def _settle(self, pendings: Sequence[Pending[Any]], budget_seconds: float) -> None:
        network = self.network
        deadline = network.clock() + budget_seconds
        attempt = 0
        todo = list(pendings)
        while todo:
            attempt += 1
            try:
                await self._attempt(todo, deadline, budget_seconds)
                return
            except Setback as setback:
                problem = setback.error
            except KarmaError as error:
                _fail(todo, error)
                return
            left = [pending for pending in todo if not pending.is_done]
            if len(left) < len(todo):
                todo, attempt, deadline = left, 0, network.clock() + budget_seconds
                continue
            wait_seconds = backoff_seconds(attempt, network.chance())
            is_last = self.settings.max_attempts is not None and attempt >= self.settings.max_attempts
            # Without time it would be cut off, and a refused write end as one of unknown outcome.
            needed_seconds = wait_seconds + min(LAST_ATTEMPT_SECONDS, budget_seconds / 4)
            if is_last or network.clock() + needed_seconds >= deadline:
                _fail(todo, problem)
                return
            await network.sleep(wait_seconds)

    async def _attempt(
        self, pendings: Sequence[Pending[Any]], deadline: float, budget_seconds: float
    ) -> None:
        """Send what is open over one connection. Raises Setback, or a KarmaError that settles the rest."""
        token = self.settings.token.current()
        # All of them before anything leaves: one that cannot be sent is found while nothing has happened yet.
        windows = list(_windows([(pending, pending.call.line(token)) for pending in pendings]))
        try:
            channel = await self._connect(deadline)
        except UnauthorizedError as error:
            raise (Setback(error) if self.settings.token.is_newer_than(token) else error) from error
        try:
            for window in windows:
                await self._exchange(channel, window, token, deadline)
                deadline = self.network.clock() + budget_seconds
        except Setback as setback:
            if setback.is_in_step:
                self._put_back(channel)
            else:
                channel.close()
            raise
        except BaseException:
            # Also a cancelled task and Ctrl-C: no later request may take the replies to come for its own.
            channel.close()
            raise
        self._put_back(channel)

    async def _exchange(
        self,
        channel: Channel,
        window: Sequence[tuple[Pending[Any], bytes]],
        token: str | None,
        deadline: float,
    ) -> None:
        """Send a window and settle its calls by the replies. Raises Setback or KarmaError, as `_attempt`."""
        exchange = Exchange([line for _, line in window])
        node = channel.node
        broken: OSError | ProtocolError | None = None
        try:
            await channel.exchange(exchange, max(0.0, deadline - self.network.clock()))
        except (OSError, ProtocolError) as error:
            broken = error
            self._doubt(node)
        refused: list[tuple[Pending[Any], ReplyError]] = []
        taken = 0
        reply_error: ReplyError | None = None
        for (pending, _), line in zip(window, exchange.lines, strict=False):
            try:
                reply_error = take_reply(pending, line, str(node))
            except ProtocolError as error:
                broken = error
                break
            taken += 1
            self.last_node = node
            if isinstance(reply_error, ForbiddenError | UnauthorizedError | OverloadedError):
                refused.append((pending, reply_error))
            elif reply_error is not None:
                pending.fail(reply_error)
            elif pending.call.op == "system.stats":
                self._learn(pending.result())
        if isinstance(reply_error, RequestTooLargeError) or (
            isinstance(reply_error, OverloadedError) and taken == 1
        ):
            # Last words: the server executes nothing more of this connection, or never took anything of it.
            # What is open may be sent again.
            self._doubt(node)
            raise Setback(reply_error)
        if broken is not None:
            unanswered = [pending for pending, _ in window[taken:]]
            raise _lost(unanswered, broken, node, has_left=exchange.has_left) from broken
        refusal: KarmaError | None = None
        role: str | None = None
        for pending, said in refused:
            if role is None and isinstance(said, ForbiddenError) and said.reason is None:
                # Karma 1.0 does not say why. A slave refuses for its role; a master, because of the token.
                role = await self._role(node) if self.settings.target == "master" else ""
            if self._may_pass_next_time(said, role, token):
                refusal = said
                self._doubt(node, said)
            else:
                pending.fail(said)
        if refusal is not None:
            # An overloaded server may close behind its reply.
            is_closing = any(isinstance(said, OverloadedError) for _, said in refused)
            raise Setback(refusal, is_in_step=exchange.is_clean and not is_closing)
        if not exchange.is_clean:
            raise Setback(ProtocolError("sent more than the replies that were asked for", node=str(node)))

    def _may_pass_next_time(self, error: ReplyError, role: str | None, token: str | None) -> bool:
        """Whether a refused request may be granted later, by another node, or with another token."""
        if isinstance(error, ForbiddenError):
            reason = error.reason or ("role" if role == "slave" else None)
            return reason == "paused" or (reason is not None and self.settings.target == "master")
        if isinstance(error, UnauthorizedError):
            return self.settings.token.is_newer_than(token)
        return True

    # -- Connections ---------------------------------------------------------------------------

    async def _connect(self, deadline: float) -> Channel:
        """Return a connection to the node that the target names. Raises Setback when there is none now."""
        if self.settings.target == "any":
            return await self._connect_any(deadline)
        try:
            master = self._master or await self._find_master(deadline)
            self._master = master
            return await self._channel(master, deadline)
        except NoMasterError as error:
            raise Setback(error) from error
        except UnreachableError as error:
            if self._master is not None:
                self._doubt(self._master)
            raise Setback(error) from error

    async def _connect_any(self, deadline: float) -> Channel:
        nodes = self.settings.nodes
        problems: list[UnreachableError] = []
        for _ in nodes:
            try:
                return await self._channel(nodes[self._first % len(nodes)], deadline)
            except UnreachableError as error:
                problems.append(error)
                self._doubt(nodes[self._first % len(nodes)])
        if len(problems) == 1:
            raise Setback(problems[0])
        raise Setback(UnreachableError(f"no node can be reached: {'; '.join(map(str, problems))}"))

    async def _channel(self, node: Node, deadline: float) -> Channel:
        """Return a connection to a node, a rested one if possible. Raises UnreachableError."""
        now = self.network.clock()
        idle = self._idle.setdefault(node, deque())
        while idle:
            try:
                since, channel = idle.pop()
            except IndexError:
                # Another thread took the last one.
                break
            if now - since <= self.idle_seconds and channel.is_usable():
                return channel
            channel.close()
        try:
            return await self.network.open(node, self._patience_seconds(deadline))
        except OSError as error:
            cause = tls_cause(error)
            if cause is not None:
                raise TlsError(f"no TLS connection: {describe(error)}", cause, node=str(node)) from error
            raise UnreachableError(f"cannot connect: {describe(error)}", node=str(node)) from error

    def _patience_seconds(self, deadline: float) -> float:
        """How long to wait for a node to be reached, or to tell its status."""
        return min(self.settings.connect_timeout_seconds, max(0.001, deadline - self.network.clock()))

    def _put_back(self, channel: Channel) -> None:
        idle = self._idle.setdefault(channel.node, deque())
        if self.is_closed or len(idle) >= self.settings.pool_size:
            channel.close()
        else:
            idle.append((self.network.clock(), channel))

    def _learn(self, stats: Any) -> None:
        """Take the server's read timeout (0 is none) from its stats; Karma 1.0 does not tell it."""
        read_timeout_seconds = getattr(stats, "read_timeout_seconds", None)
        if read_timeout_seconds is not None:
            self.idle_seconds = read_timeout_seconds / 2 or float("inf")

    # -- The master ----------------------------------------------------------------------------

    def _doubt(self, node: Node, refusal: ReplyError | None = None) -> None:
        """Look elsewhere next time, unless somebody did so meanwhile: for the master, or for any other node.

        A refusal may name the master. One for a pause or the token says nothing against the node.
        """
        if isinstance(refusal, UnauthorizedError):
            return
        if isinstance(refusal, ForbiddenError):
            if refusal.reason == "paused":
                return
            if refusal.master is not None:
                with contextlib.suppress(InvalidArgumentError):
                    self._hints = tuple(self._allowed([Node.parse(refusal.master)]))
        nodes = self.settings.nodes
        if nodes[self._first % len(nodes)] == node:
            self._first += 1
        if self._master == node and len({*nodes, *self._hints}) > 1:
            self._master = None

    async def _find_master(self, deadline: float) -> Node:
        """Ask every node for its role, and where none is a master, the sources they follow.

        Raises what `choose_master` raises.
        """
        answers: list[Answer] = []
        nodes = list(dict.fromkeys((*self.settings.nodes, *self._hints)))
        while nodes:
            answers += await self.network.gather([self._ask(node, deadline) for node in nodes])
            if any(answer.is_master for answer in answers):
                break
            asked = {answer.node for answer in answers}
            nodes = [node for node in self._allowed(sources(answers)) if node not in asked]
        return choose_master(answers)

    def _allowed(self, named: Sequence[Node]) -> list[Node]:
        """Return those of the nodes that servers named which may get the token."""
        return [node for node in named if self.settings.follow_hints or node in self.settings.nodes]

    async def find_master(self, timeouts: Timeouts) -> Node:
        """Return the node that writes go to now. Raises what `choose_master` raises."""
        return await self._find_master(self.network.clock() + timeouts.call_seconds)

    async def _ask(self, node: Node, deadline: float) -> Answer:
        try:
            channel = await self._channel(node, deadline)
        except UnreachableError as error:
            return Answer(node, error=error)
        pending = Pending(_STATUS)
        try:
            exchange = Exchange([_STATUS.line(self.settings.token.current())])
            await channel.exchange(exchange, self._patience_seconds(deadline))
            refusal = take_reply(pending, exchange.lines[0], str(node))
        except OSError as problem:
            channel.close()
            return Answer(
                node, error=UnreachableError(f"gave no status: {describe(problem)}", node=str(node))
            )
        except KarmaError as problem:
            channel.close()
            return Answer(node, error=problem)
        except BaseException:
            channel.close()
            raise
        self._put_back(channel)
        trouble = refusal or pending.error
        return Answer(node, status=None if trouble else pending.result(), error=trouble)

    async def _role(self, node: Node) -> str:
        answer = await self._ask(node, self.network.clock() + self.settings.connect_timeout_seconds)
        return str((answer.status or {}).get("role"))


def _windows(lines: Sequence[tuple[Pending[Any], bytes]]) -> Iterator[Sequence[tuple[Pending[Any], bytes]]]:
    """Cut calls with their lines into windows."""
    start = size_bytes = 0
    for index, (_, line) in enumerate(lines):
        if index > start and (size_bytes + len(line) > WINDOW_BYTES or index - start == WINDOW_REQUESTS):
            yield lines[start:index]
            start, size_bytes = index, 0
        size_bytes += len(line)
    yield lines[start:]


def _lost(
    unanswered: Sequence[Pending[Any]], error: OSError | ProtocolError, node: Node, *, has_left: bool
) -> Setback | KarmaError:
    """Settle writes whose outcome nobody knows. Return what to do with the rest: try again, or fail."""
    address = str(node)
    reason = (
        error.message if isinstance(error, ProtocolError) else f"the connection was lost: {describe(error)}"
    )
    if isinstance(error, TimeoutError):
        reason = "there was no reply in time"
    is_unknown = False
    for pending in unanswered if has_left else ():
        if not pending.call.is_repeatable:
            is_unknown = True
            pending.fail(
                UnknownOutcomeError(
                    f"{pending.call.op} may or may not have been applied: {reason}. Read what is there "
                    "before sending it again; with an idempotency key it can be sent again without looking",
                    node=address,
                    op=pending.call.op,
                )
            )
    if isinstance(error, ProtocolError):
        return ProtocolError(reason, node=address)
    if isinstance(error, TimeoutError):
        return RequestTimeoutError(f"{reason}; the node may be busy, stopped or cut off", node=address)
    if is_unknown:
        return UnreachableError(f"not sent behind a write of unknown outcome: {reason}", node=address)
    return Setback(UnreachableError(reason, node=address))


def _reads_only(pendings: Sequence[Pending[Any]]) -> list[Pending[Any]]:
    """Return the calls that change nothing; the others fail."""
    for pending in pendings:
        if pending.call.is_write:
            problem = f"{pending.call.op} writes, and this client is read-only; nothing was sent"
            pending.fail(ReadOnlyError(problem, op=pending.call.op))
    return [pending for pending in pendings if not pending.call.is_write]


def _fail(pendings: Sequence[Pending[Any]], error: KarmaError) -> None:
    for pending in pendings:
        if not pending.is_done:
            pending.fail(error)
