"""Role, epoch, fence and pause of this node: decided here, on disk before they take effect.

Without consensus no node can know that it is the only master. What keeps two of them from damage is
the epoch: a promotion opens the next number, and a master that learns of a higher one, or of its own
number opened by another node, takes no more writes. Who stopped it and since when is in every refusal.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from karma.config import Config
from karma.core.epochs import MAX_EPOCH, Epoch, History, implausible
from karma.engine import Engine
from karma.engine.effects import Order
from karma.errors import ConfigError, ErrorCode, RequestError
from karma.limits import MAX_FORMER_SOURCES, MAX_PAUSE_MS
from karma.service.log import Log
from karma.storage import node_file
from karma.storage.disk import Disk
from karma.storage.node_file import Address, Fence, KnownReplica, Node, Role

_RETRY_AFTER_MS = 1000
_BY_HAND = Order()


# -- At the start ----------------------------------------------------------------------------------------


def settle_role(
    config: Config, found: Node | None, last_lsn: int, log: Log, new_id: Callable[[], str], *, lost_tail: bool
) -> Node:
    """Return what a node is at its start, given its file (None: it has none) and its options.

    What was decided at run time wins over the options unless these are forced. A master opens an epoch when
    LSNs that it has shown may come again: its log lost a tail (`lost_tail`), or the last end was not clean
    and nothing had been synced. `new_id` makes an id. Raises ConfigError.
    """
    role, source = _configured(config)
    if found is None:
        node = Node(new_id(), role=role, source=source)
        if role == "master":
            node = replace(node, cluster_id=new_id(), history=History().opened(1, node.node_id, last_lsn))
        return node
    node = found
    if found.is_runtime and not config.force_role:
        if (found.role, _place(found.source)) != (role, _place(source)):
            log.warning(
                "role_kept",
                f"This node is a {_describe(found.role, found.source)}, as decided at run time; the options "
                f"say {_describe(role, source)} and do not count (--force-role=true makes them)",
            )
        role, source = found.role, found.source
    else:
        if found.is_runtime:
            log.warning(
                "role_forced",
                f"This node starts as a {_describe(role, source)} by --force-role; it was a "
                f"{_describe(found.role, found.source)} by a decision at run time, which is forgotten",
            )
        node = replace(found, is_runtime=False)
    if role == "master" and found.must_rebuild:
        raise ConfigError(
            "--role=master: this directory was being rebuilt from its source and is not complete; let it "
            "finish as a slave, or start from another directory"
        )
    must_promote = role == "master" and found.role == "slave"
    node = replace(node, role=role, source=source)
    if role == "slave":
        if found.role == "master" and source is not None and found.fence is not None:
            # As replication.follow does; a slave that reports itself fenced for ever helps nobody.
            log.warning("unfenced", f"{_describe(role, source)} by its options: the fence is lifted")
            node = replace(node, fence=None)
        return node
    if must_promote:
        log.warning(
            "promoted", "This node was a slave and starts as master by its options: it opens a new epoch"
        )
        return promoted(replace(found, is_runtime=node.is_runtime), last_lsn, new_id)
    node = replace(
        node,
        cluster_id=node.cluster_id or new_id(),
        epoch_due=node.epoch_due or lost_tail or found.running == "unsynced" or not node.history.epochs,
    )
    if node.epoch_due and node.fence is None:
        node = _opened(node, last_lsn)
        log.warning(
            "epoch_opened",
            f"Epoch {node.history.current.number} begins at LSN {last_lsn + 1}: the last end was not clean, "
            "and LSNs behind it may have been seen before",
        )
    return node


def _configured(config: Config) -> tuple[Role, Address | None]:
    host = config.replication_source_host
    if config.role == "master":
        return "master", None
    return "slave", Address(host, config.replication_source_port) if host is not None else None


def _place(source: Address | None) -> tuple[str, int] | None:
    return None if source is None else (source.host, source.port)


def address_of(text: str | None) -> Address | None:
    """Return a ``host:port`` as an address, None for anything else."""
    host, _, port = (text or "").rpartition(":")
    return Address(host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _describe(role: str, source: Address | None) -> str:
    return f"{role} of {source}" if source is not None else role


def promoted(node: Node, last_lsn: int, new_id: Callable[[], str], master: Address | None = None) -> Node:
    """Return a node as master of an epoch of its own, above every number that it knows.

    `master` is where the one was that it takes over from, which at the end of a chain is not its source.
    """
    former: dict[tuple[str, int] | None, Address] = {}
    for each in (*node.former_sources, master, node.source):
        if each is not None:
            former.pop(_place(each), None)
            former[_place(each)] = each
    node = replace(
        node,
        role="master",
        source=None,
        cluster_id=node.cluster_id or new_id(),
        former_sources=tuple(former.values())[-MAX_FORMER_SOURCES:],
        paused_until_unix_ms=None,
        pause_ttl_ms=None,
        paused_by=None,
    )
    return replace(_opened(node, last_lsn), fence=None)


def _next_number(node: Node) -> int:
    """Return the number of the epoch that a node would open. Raises RequestError when there is none left."""
    number = max(node.history.current.number, node.fence.epoch if node.fence else 0) + 1
    if number > MAX_EPOCH:
        cause = (
            f"the fence names epoch {node.fence.epoch}: replication.unfence it, then promote"
            if node.fence is not None and node.fence.epoch >= MAX_EPOCH
            else "restore the cluster from a snapshot in an empty directory"
        )
        raise RequestError(
            ErrorCode.VALIDATION_ERROR, f"There is no epoch above {MAX_EPOCH} to open; {cause}"
        )
    return number


def _opened(node: Node, last_lsn: int) -> Node:
    history = node.history.opened(_next_number(node), node.node_id, last_lsn)
    return replace(node, history=history, epoch_due=False)


# -- While running ---------------------------------------------------------------------------------------


@dataclass(slots=True, repr=False)
class Roles:
    """What this node is now. `clock_ms` is unix milliseconds, `monotonic` seconds; `new_id` makes an id."""

    node: Node
    disk: Disk
    directory: Path
    engine: Engine
    log: Log
    clock_ms: Callable[[], int]
    new_id: Callable[[], str]
    monotonic: Callable[[], float] = time.monotonic
    master_hint: Callable[[], str | None] = lambda: None
    """The master's address as ``host:port``, where a slave knows it."""
    forced_orders: int = 0
    """Orders that overrode another run's fence, pause or lease since the start."""
    _held: str | None = None
    _pause_ends: float = 0.0
    """When the node's pause is over, by the monotonic clock: no step of the other one moves it."""

    def __post_init__(self) -> None:
        self._resume_pause()
        self.refresh()

    @property
    def is_master(self) -> bool:
        """Whether this node's role is master; a fence or a pause may still stop its writes."""
        return self.node.role == "master"

    @property
    def epoch(self) -> Epoch:
        """The newest epoch that this node knows."""
        return self.node.history.current

    @property
    def paused_until_unix_ms(self) -> int | None:
        """When the pause ends by the clock as it is now, None without one."""
        left_ms = self._pause_left_ms
        return self.clock_ms() + left_ms if left_ms else None

    @property
    def _pause_left_ms(self) -> int:
        if self.node.paused_until_unix_ms is None:
            return 0
        return max(math.ceil((self._pause_ends - self.monotonic()) * 1000), 0)

    def _resume_pause(self) -> None:
        """Let a pause found in the node's file last until its time, but no longer than it was to last."""
        node = self.node
        if node.paused_until_unix_ms is not None:
            ttl_ms = MAX_PAUSE_MS if node.pause_ttl_ms is None else node.pause_ttl_ms
            left_ms = min(node.paused_until_unix_ms - self.clock_ms(), ttl_ms)
            self._pause_ends = self.monotonic() + left_ms / 1000

    @property
    def paused_by(self) -> str | None:
        """The run of the pause, None without one."""
        return self.node.paused_by if self.paused_until_unix_ms is not None else None

    @property
    def pending_change(self) -> str | None:
        """What is being decided about the node's role, None while nothing is."""
        return self._held

    def save(self, node: Node) -> None:
        """Make a decision durable, then let it count; neither on RequestError (storage_error)."""
        try:
            self._put(node)
        except OSError as error:
            raise RequestError(
                ErrorCode.STORAGE_ERROR,
                f"The disk refused {node_file.NODE_NAME} ({error.strerror}); nothing has changed",
            ) from error

    def _put(self, node: Node) -> None:
        node_file.save(self.disk, self.directory, node)
        self.node = node
        self.refresh()

    def refresh(self) -> None:
        """Let requests see what the node is now."""
        node = self.node
        is_stopped = not self.is_master or node.fence or self._held or self._pause_left_ms
        self.engine.refusal = self._refusal if is_stopped else None

    @contextlib.contextmanager
    def held(self, reason: str) -> Iterator[None]:
        """Refuse writes for a while: what the node is to be is being decided."""
        self._held = reason
        self.refresh()
        try:
            yield
        finally:
            self._held = None
            self.refresh()

    def _refusal(self) -> RequestError | None:
        node, pause_left_ms = self.node, self._pause_left_ms
        retry_after_ms: int | None = _RETRY_AFTER_MS
        master = None
        if node.fence is not None:
            reason, retry_after_ms = "fenced", None
            text = f"This node is fenced and takes no writes: {describe_fence(node.fence)}. Find the master"
        elif not self.is_master:
            reason, master = "role", self.master_hint()
            text = "This node is a slave and takes no writes; send them to the master"
        elif self._held is not None:
            reason, text = "role", f"{self._held}; ask again where the master is"
        elif not pause_left_ms:
            # The pause has ended since somebody looked last.
            self.refresh()
            return None
        else:
            reason, retry_after_ms = "paused", pause_left_ms
            text = f"Writes are paused for another {retry_after_ms} ms; try again then"
        detail: dict[str, object] = {"reason": reason, "retry_after_ms": retry_after_ms, "master": master}
        if node.fence is not None:
            detail["fenced_by"] = node.fence.describe()
        return RequestError(ErrorCode.FORBIDDEN, text, detail)

    # -- Operations ------------------------------------------------------------------------------------

    def check_follow(self, order: Order) -> None:
        """Raise RequestError for a master that is paused for another run: a role is being moved.

        A fence does not matter, as following is how a fenced master comes back; nor does a pause behind it.
        """
        if self.node.fence is None:
            self.check_run(order)

    def check_run(self, order: Order, *, heeds_fence: bool = True) -> None:
        """Raise RequestError when the node is fenced or paused for another run than the one that orders."""
        fence, paused_by = self.node.fence, self.paused_by
        if heeds_fence and fence is not None and fence.run is not None and fence.run != order.run:
            detail = {"run": fence.run, "fenced_by": fence.describe()}
            self._overridden(order, f"is fenced for run {fence.run} (epoch {fence.epoch})", detail)
        if paused_by is not None and paused_by != order.run:
            self._overridden(order, f"is paused for run {paused_by}", {"run": paused_by})

    def _overridden(self, order: Order, state: str, detail: Mapping[str, object]) -> None:
        by = f"run {order.run}" if order.run else "an order without a run"
        if not order.force:
            raise RequestError(
                ErrorCode.FORBIDDEN,
                f"This node {state} and takes no order of {by}: end that run first, or override it with "
                "force:true if no one can resume it",
                {"reason": "other_run", **detail},
            )
        self.note_forced(f"It {state}; {by} overrode that")

    def note_forced(self, what: str) -> None:
        """Count and log an order that was forced on this node."""
        self.forced_orders += 1
        self.log.warning("forced", what)

    def pause(self, ttl_ms: int, order: Order = _BY_HAND) -> dict[str, Any]:
        """Carry out replication.pause. Raises RequestError where another run fenced or paused the node."""
        self.check_run(order)
        until = self.clock_ms() + ttl_ms
        self.save(replace(self.node, paused_until_unix_ms=until, pause_ttl_ms=ttl_ms, paused_by=order.run))
        self._pause_ends = self.monotonic() + ttl_ms / 1000
        self.refresh()
        self.log.warning("paused", f"Writes are refused for {ttl_ms} ms")
        return {"paused_until": until}

    def resume(self, order: Order = _BY_HAND) -> dict[str, Any]:
        """Carry out replication.resume. Raises RequestError where another run paused the node."""
        self.check_run(order, heeds_fence=False)
        if self._pause_left_ms:
            self.log.info("resumed", "Writes are taken again")
        self.save(replace(self.node, paused_until_unix_ms=None, pause_ttl_ms=None, paused_by=None))
        return {"paused_until": None}

    def fence(self, epoch: int, reason: str, order: Order = _BY_HAND) -> dict[str, Any]:
        """Carry out replication.fence.

        Raises RequestError for an epoch that cannot be, and where another run fenced or paused this node.
        """
        self.check_run(order)
        fence = check_fence(self.node, epoch, reason, self.clock_ms(), is_forced=order.force)
        self._fence(replace(fence, run=order.run))
        return self._fenced_by()

    def unfence(self, epoch: int, last_lsn: int, order: Order = _BY_HAND) -> dict[str, Any]:
        """Carry out replication.unfence.

        Raises RequestError when the epoch is not the fence's, and where another run fenced the node. A master
        whose epoch another node opened too opens the next one: the two would stop each other again at once.
        """
        fence = self.node.fence
        self.check_run(order)
        if fence is None:
            raise RequestError(ErrorCode.VALIDATION_ERROR, "This node is not fenced")
        if fence.epoch != epoch:
            raise RequestError(
                ErrorCode.VALIDATION_ERROR,
                f"Field epoch is {epoch}, but the fence is for epoch {fence.epoch} ({fence.reason}): look "
                "again before you lift it",
            )
        node = replace(self.node, fence=None)
        is_shared = fence.epoch == self.epoch.number and fence.node_id not in (None, node.node_id)
        self.save(_opened(node, last_lsn) if self.is_master and (node.epoch_due or is_shared) else node)
        self.log.warning("unfenced", f"The fence of epoch {epoch} was lifted by an operator")
        return {**self._fenced_by(), "epoch": self.epoch.number}

    def check_promotion(self, epoch: int | None, order: Order) -> None:
        """Raise RequestError when a promotion to `epoch` (None: whichever is next) is not this order's."""
        self.check_run(order)
        is_ruling = self.is_master and self.node.fence is None
        opens = self.epoch.number if is_ruling else _next_number(self.node)
        if epoch is not None and epoch != opens:
            raise RequestError(
                ErrorCode.VALIDATION_ERROR,
                f"Field epoch is {epoch}, but this node {'is master of' if is_ruling else 'would open'} "
                f"epoch {opens}: look at the cluster again",
                {"reason": "epoch", "epoch": opens},
            )

    def promote(self, last_lsn: int, order: Order = _BY_HAND, epoch: int | None = None) -> dict[str, Any]:
        """Carry out replication.promote; a master that nothing fences stays as it is.

        Raises RequestError as `check_promotion` does, and for a node that is not complete.
        """
        self.check_promotion(epoch, order)
        if self.is_master and self.node.fence is None:
            return {"role": "master", "epoch": self.epoch.number}
        if self.node.must_rebuild:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                "This node is being rebuilt from its source and is not complete; promote another one",
            )
        master = address_of(self.master_hint()) if not self.is_master else None
        self.save(replace(promoted(self.node, last_lsn, self.new_id, master), is_runtime=True))
        self.log.warning(
            "promoted", f"This node is master of epoch {self.epoch.number} from LSN {last_lsn + 1} on"
        )
        return {
            "role": "master",
            "epoch": self.epoch.number,
            "start_lsn": last_lsn + 1,
            "source": None,
            "cluster_id": self.node.cluster_id,
            **self._fenced_by(),
            "paused_until": None,
        }

    def follow(self, source: Address, *, must_rebuild: bool) -> None:
        """Become a slave of a source that was found fit."""
        self.save(
            replace(
                self.node,
                role="slave",
                source=source,
                is_runtime=True,
                fence=None,
                paused_until_unix_ms=None,
                pause_ttl_ms=None,
                paused_by=None,
                former_sources=(),
                replicas=(),
                must_rebuild=must_rebuild,
            )
        )
        self.log.warning("following", f"This node is a slave of {source}, by an operator's order")

    # -- What others tell ------------------------------------------------------------------------------

    def learn(self, number: int, opener: str | None) -> None:
        """Take note of an epoch that exists elsewhere in the cluster; a master stops when it is not the last.

        `opener` is the node that opened it, None when nobody said: then only a higher number tells anything.
        Raises RequestError for a number that is too far ahead to be believed.
        """
        self.check_epoch(number)
        mine, fence = self.epoch, self.node.fence
        is_other = number == mine.number and opener not in (None, "", mine.node_id)
        if not self.is_master or (number <= mine.number and not is_other):
            return
        if fence is not None and fence.epoch >= number:
            return
        reason = (
            f"another node opened epoch {number} too: two promotions, of which one must give way"
            if is_other
            else f"epoch {number} is newer than this node's {mine.number}: another node was promoted"
        )
        found = Fence(number, reason, self.clock_ms(), opener)
        try:
            self._fence(found)
        except RequestError as error:
            # A full disk must not keep a stale master going. After a restart it learns of the epoch anew.
            self.node = replace(self.node, fence=found)
            self.refresh()
            self.log.error(
                "fenced", f"This node takes no more writes: {describe_fence(found)}. {error.message}"
            )

    def check_epoch(self, number: int) -> None:
        """Raise RequestError for an epoch of another node that cannot be."""
        problem = implausible(number, self.epoch.number)
        if problem is not None:
            raise RequestError(
                ErrorCode.REPLICATION_ERROR,
                f"The sender's claim is not believed: {problem}. If it is right, fence this node for it with "
                "force:true",
                {"reason": "epoch", "epoch": self.epoch.number},
            )

    def _fence(self, fence: Fence) -> None:
        self.save(replace(self.node, fence=fence))
        self.log.error("fenced", f"This node takes no more writes: {describe_fence(fence)}")

    def _fenced_by(self) -> dict[str, Any]:
        return {"fenced_by": self.node.fence.describe() if self.node.fence else None}

    def adopt(self, cluster_id: str | None, history: History) -> None:
        """Note what a slave learned of its source, if it is anything new."""
        if (self.node.cluster_id, self.node.history) != (cluster_id, history):
            self.save(replace(self.node, cluster_id=cluster_id, history=history))

    def exchanged(self, node: Node) -> None:
        """Be what the file says that came in with a source's data."""
        self.node = node
        self._resume_pause()
        self.refresh()

    def remember_replicas(self, replicas: tuple[KnownReplica, ...]) -> None:
        """Note for which followers log is kept, if their list has changed."""
        if replicas != self.node.replicas:
            self.save(replace(self.node, replicas=replicas))

    def note_running(self, *, is_synced: bool, last_lsn: int | None = None) -> None:
        """Note that a server has the directory, and open the epoch that is due behind an LSN.

        Raises OSError with nothing changed.
        """
        node = replace(self.node, running="synced" if is_synced else "unsynced")
        is_opening = last_lsn is not None and self.is_master and node.epoch_due and node.fence is None
        if last_lsn is not None and is_opening:
            node = _opened(node, last_lsn)
        self._put(node)
        if last_lsn is not None and is_opening:
            self.log.warning(
                "epoch_opened",
                f"Epoch {node.history.current.number} begins at LSN {last_lsn + 1}: the disk refused "
                "writes at the start and takes them now",
            )

    def note_stopped(self, replicas: tuple[KnownReplica, ...]) -> None:
        """Note a clean end."""
        self.save(replace(self.node, running=None, replicas=replicas))


def check_fence(node: Node, epoch: int, reason: str, now_ms: int, *, is_forced: bool) -> Fence:
    """Return an operator's fence. Raises RequestError for an epoch below or far above the node's own."""
    current = node.history.current.number
    if epoch < current:
        raise RequestError(
            ErrorCode.VALIDATION_ERROR,
            f"Field epoch is {epoch}, below this node's own ({current}): the order is older than its role",
        )
    problem = implausible(epoch, current, is_forced=is_forced)
    if problem is not None:
        hint = "" if is_forced or epoch > MAX_EPOCH else ". Look again; force:true fences for it all the same"
        raise RequestError(ErrorCode.VALIDATION_ERROR, f"Field epoch cannot be used: {problem}{hint}")
    return Fence(epoch, reason, now_ms)


def describe_fence(fence: Fence) -> str:
    """Return a fence in words."""
    by = f"node {fence.node_id}" if fence.node_id else f"run {fence.run}" if fence.run else "an operator"
    try:
        since = datetime.fromtimestamp(fence.since_unix_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OSError, OverflowError, ValueError):
        # From a file that was edited by hand, say.
        since = f"{fence.since_unix_ms} (unix ms)"
    return f"fenced for epoch {fence.epoch} by {by} since {since}: {fence.reason}"
