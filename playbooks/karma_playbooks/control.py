"""From a book's name to a run's end: what the command line and the dashboard call.

async with sitting(desk, …) as playbooks:
    plan = await playbooks.plan(book, {"to": "b"})
    ending = await playbooks.run(book, {"to": "b"}, plan, request)
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from karma_client import AsyncClient, connect_async
from karma_playbooks import facts, lock, mirror, outbox
from karma_playbooks import plan as planning
from karma_playbooks.cluster import Cluster, NodeFacts
from karma_playbooks.errors import PlaybookError
from karma_playbooks.format import Book
from karma_playbooks.history import FINAL, History
from karma_playbooks.history import Entry as JournalEntry
from karma_playbooks.inventory import Desk, Entry, entries
from karma_playbooks.journal import Journal
from karma_playbooks.lock import Lock
from karma_playbooks.mirror import Mirror
from karma_playbooks.plan import Plan
from karma_playbooks.runner import Ending, Runner
from karma_playbooks.world import MAX_HOSTS, World

COOLDOWN_SECONDS = 300
MAX_BOOK_NAME = 40
"""Characters of a book's name in a run's id, which the nodes take up to 64 bytes of."""


class Request(NamedTuple):
    """Who wants a run, and within which bounds. `max_loss_entries` None means what the plan shows."""

    operator: str
    reason: str
    ticket: str = ""
    plan_hash: str = ""
    max_loss_entries: int | None = None
    ignores_cooldown: bool = False
    lock_unverified: bool = False
    """Go on without a majority that holds the lock: the operator knows that no one else is at the cluster."""


def new_run_id(book: str) -> str:
    """Return the id of a new run: readable, sortable, its own."""
    return f"{book[:MAX_BOOK_NAME]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


@dataclass(slots=True)
class Playbooks:
    """Plans and runs against one cluster. `tell` gets lines for the operator."""

    world: World
    journal: Journal
    cluster: str
    is_production: bool
    tell: Callable[[str], None]
    events: Path | None = None
    """The folder of the event log; None sends no events."""
    is_read_only: bool = False
    _runner: Runner | None = None

    def stop(self) -> None:
        """Let the step of the run under way end, then take back what was done."""
        if self._runner is not None:
            self._runner.stop()

    async def look(self, heard: Callable[[NodeFacts], None] | None = None) -> Cluster:
        """Return what nodes and hosts say of themselves; `heard` is called with each node."""
        return await facts.gather(self.world, self.cluster, is_production=self.is_production, heard=heard)

    async def plan(
        self, book: Book, given: Mapping[str, str], heard: Callable[[NodeFacts], None] | None = None
    ) -> Plan:
        """Gather facts and plan; `heard` is told of each node. Raises PlaybookError."""
        found = await self.look(heard)
        if book.loses == "what no follower has":
            found = await facts.with_missing(self.world, found)
        return planning.make(book, given, found)

    async def run(
        self, book: Book, given: Mapping[str, str], shown: Plan, request: Request
    ) -> tuple[str, Ending]:
        """Carry a plan out that somebody has seen; returns the run's id and its end. Raises PlaybookError."""
        self._refuse_if_read_only()
        self._refuse_beside_others()
        run = new_run_id(book.name)
        held = self._lock(run, 1, request.operator, is_unverified=request.lock_unverified)
        for problem in await held.acquire():
            self.tell(f"warning: no lock on {problem}")
        try:
            # The question took its time, and only now nobody else changes anything.
            plan = await self.plan(book, pinned(book, given, shown))
            refuse_failed_checks(plan)
            self._check_drift(plan, shown, request)
            self._check_cooldown(plan, request, held)
            header = {
                "book": book.text,
                "file": book.file,
                "params": dict(given),
                "plan": plan.to_json(),
                "plan_hash": plan.hash,
                "cluster": self.cluster,
                "operator": request.operator,
                "reason": request.reason,
                "ticket": request.ticket,
                "entries": [entry._asdict() for entry in self.world.entries.values()],
            }
            self.journal.append(run, "requested", header)
            self._note_doubt(run, held)
        except BaseException:
            await held.release()
            raise
        return run, await self._carry_on(run, plan, held, Runner.go)

    async def resume(
        self,
        run: str,
        operator: str,
        *,
        abort: bool = False,
        takeover: bool = False,
        lock_unverified: bool = False,
    ) -> Ending:
        """Go on with a run that stopped, or take it back; from this machine's journal, or else from the
        hosts'.
        """
        self._refuse_if_read_only()
        history = await self._learn(run)
        if history.is_over:
            raise PlaybookError(f"{run} is {history.state}: there is nothing left to do", "", "refused")
        plan = Plan.of_json(history.header["plan"])
        held = self._lock(run, history.epoch + 1, operator, is_unverified=lock_unverified)
        for problem in await held.acquire(takeover=takeover):
            self.tell(f"warning: no lock on {problem}")
        try:
            # Between looking and locking another machine may have gone on with it, and let go of it again.
            _refuse_old(history, await self._learn(run))
            self._note_doubt(run, held)
        except BaseException:
            await held.give_up()
            raise
        return await self._carry_on(run, plan, held, Runner.abort if abort else Runner.go)

    def _note_doubt(self, run: str, held: Lock) -> None:
        """Keep in the journal that only the operator's word rules out another run."""
        if held.doubt:
            text = f"{held.doubt}; by the operator's word no other run changes this cluster"
            self.journal.append(run, "note", {"text": text, "outcome": "unknown"})
            self.tell(f"unknown: {text}")

    async def _learn(self, run: str) -> History:
        """Return what is known of a run, here and on the hosts, and note here what only they know.

        Whoever went on with a run on another machine left its journal there. Raises PlaybookError when nobody
        knows the run, or when both machines went on with it, each in its own way.
        """
        mine = self.journal.entries(run)
        try:
            found = await mirror.fetch(self.world, run)
        except PlaybookError:
            if not mine:
                raise
            found = []
        if broken := _parted(mine, found):
            raise PlaybookError(
                f"another machine took {run} over: its journal on the hosts and the one here part at entry "
                f"{broken}",
                "go on there, or on a machine that does not know the run yet; nothing was done here",
                "refused",
            )
        if len(found) > len(mine):
            self.journal.adopt(found)
            self.tell(f"{len(found) - len(mine)} entries of {run} are from another machine; a host had them")
        return self.journal.history(run)

    async def unlock(self) -> str:
        """Break the run lock; returns in words whose it was."""
        return lock.names(await self._lock("unlock", 0, "an operator").break_())

    def publish(self) -> None:
        """Send events of everything that the journal holds and the event log does not have."""
        if self.events is not None and (problem := outbox.publish(self.journal, self.events)):
            self.tell(f"warning: events are late: {problem}")

    # -- Parts -------------------------------------------------------------------------------------------

    async def _carry_on(self, run: str, plan: Plan, held: Lock, work: Callable[[Runner], Any]) -> Ending:
        ending: Ending = "paused"
        try:
            ending = await self._under_lock(run, plan, held, work)
        finally:
            await (held.park() if ending == "paused" else held.release())
        if ending == "done" and plan.playbook == "failover":
            await held.note_cooldown(COOLDOWN_SECONDS)
        return ending

    async def _under_lock(self, run: str, plan: Plan, held: Lock, work: Callable[[Runner], Any]) -> Ending:
        about = {name: held.holder[name] for name in ("epoch", "operator", "machine")}
        self.journal.append(run, "accepted", about)
        runner = Runner(
            self.journal,
            self.world,
            plan,
            self.journal.history(run),
            held,
            Mirror(self.world, self.journal, run),
            self.tell,
            self.publish,
        )
        self._runner = runner
        with _ctrl_c(runner, self.tell):
            try:
                ending: Ending = await work(runner)
            except asyncio.CancelledError:
                await runner.leave()
                raise
        return ending

    def _lock(self, run: str, epoch: int, operator: str, *, is_unverified: bool = False) -> Lock:
        since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        about = {
            "run": run,
            "epoch": epoch,
            "operator": operator,
            "machine": socket.gethostname(),
            "since": since,
        }
        return Lock(self.world, self.cluster, about, is_unverified)

    def _refuse_if_read_only(self) -> None:
        if self.is_read_only:
            raise PlaybookError(
                f"{self.cluster} is read-only here; nothing was sent",
                "run it without --read-only, or without read_only in the context",
                "refused",
            )

    def _refuse_beside_others(self) -> None:
        """A run that stopped half-way must be ended before the next begins."""
        for run in self.journal.runs():
            history = self.journal.history(run)
            if history.header.get("cluster") == self.cluster and history.state not in FINAL and history.epoch:
                raise PlaybookError(
                    f"{run} is not over ({history.state})",
                    f"end it first: `karmactl playbook resume {run}` or `karmactl playbook abort {run}`",
                    "refused",
                )

    def _check_drift(self, plan: Plan, shown: Plan, request: Request) -> None:
        if plan.hash != (request.plan_hash or shown.hash):
            raise PlaybookError(
                f"the cluster is not as it was planned for: the plan's hash is {plan.hash} now, "
                f"not {request.plan_hash or shown.hash}{drift(shown, plan)}",
                "nothing was done; look at the new plan: `karmactl playbook plan`",
                "refused",
            )
        most = shown.loss.entries if request.max_loss_entries is None else request.max_loss_entries
        if plan.loss.entries > most:
            raise PlaybookError(
                f"this would lose {plan.loss.entries} entries, more than {most}: {plan.loss.text}",
                "nothing was done; if that is meant: --max-loss-entries N",
                "refused",
            )

    def _check_cooldown(self, plan: Plan, request: Request, held: Lock) -> None:
        """Refuse a failover soon after another, of any machine: the nodes and this journal know of them."""
        if plan.playbook != "failover" or request.ignores_cooldown:
            return
        now = time.time()
        for other, until in held.cooldowns().items():
            if left_seconds := cooling_seconds(until - now):
                raise _too_soon(other, COOLDOWN_SECONDS - left_seconds)
        for run in self.journal.runs():
            history = self.journal.history(run)
            about = history.header.get("plan", {})
            ago = now - history.ended_unix_ms / 1000
            is_same = (about.get("playbook"), history.header.get("cluster")) == ("failover", self.cluster)
            if is_same and history.state == "done" and cooling_seconds(COOLDOWN_SECONDS - ago):
                raise _too_soon(run, ago)


def cooling_seconds(left_seconds: float) -> float:
    """Return what is left of a cooldown; 0 for more than one lasts, which a step of a clock makes of it."""
    return left_seconds if 0 < left_seconds <= COOLDOWN_SECONDS else 0.0


def _too_soon(run: str, ago: float) -> PlaybookError:
    return PlaybookError(
        f"the last failover ({run}) ended {ago:.0f} s ago: a second one so soon is often wrong",
        f"wait {COOLDOWN_SECONDS - ago:.0f} s, or if you are sure: --no-cooldown",
        "refused",
    )


def refuse_failed_checks(plan: Plan) -> None:
    """Raise PlaybookError where the preflight found what would make the plan fail."""
    failed = plan.failed_checks
    if failed:
        problems = "; ".join(f"{check.place}: {check.name}: {check.text}" for check in failed)
        advice = list(dict.fromkeys(check.advice for check in failed))
        old_master = plan.params.get("from")
        if "fence_unverified" in plan.params and old_master in {check.place for check in failed}:
            advice.append(f"if you know that {old_master} is off: --fence-unverified")
        raise PlaybookError(
            f"the preflight failed, so nothing was done: {problems}", "; ".join(advice), "refused"
        )


def _parted(mine: Sequence[JournalEntry], theirs: Sequence[JournalEntry]) -> int | None:
    """Return the first entry that is another one in each of two copies, None if one goes on as the other."""
    return next((a.number for a, b in zip(mine, theirs, strict=False) if a.digest != b.digest), None)


def _refuse_old(before: History, now: History) -> None:
    if now.length > before.length:
        raise PlaybookError(
            f"another machine went on with {now.run} at this moment; nothing was done here",
            f"look first: `karmactl playbook status {now.run}`",
            "refused",
        )


def pinned(book: Book, given: Mapping[str, str], shown: Plan) -> dict[str, str]:
    """Return parameters with the nodes that a plan named: under load the best follower is another one every
    moment.
    """
    named = {name: shown.params[name] for name, param in book.params.items() if param.kind == "node"}
    return {**given, **{name: value for name, value in named.items() if value is not None}}


def drift(before: Plan, after: Plan) -> str:
    """Return in words what differs between two plans' nodes."""
    old = {node["name"]: node for node in before.nodes}
    changes = [
        f"{node['name']}: {name} {old[node['name']][name]} → {value}"
        for node in after.nodes
        if node["name"] in old
        for name, value in node.items()
        if old[node["name"]].get(name) != value
    ]
    return f" ({'; '.join(changes)})" if changes else ""


def next_words(run: str, history: History) -> str:
    """Return what to do about a run that stopped, or that no one carries out any more; "" for nothing."""
    if history.state == "superseded":
        books = [f"karmactl playbook run rejoin-old-master --param node={name}" for name in history.rejoin]
        choice = (
            ""
            if history.ruler
            else "choose the master: karmactl playbook run unfence --param node=…; then of the others "
        )
        return f"{choice}save the tail and let it follow: {'; '.join(books)}" if books else ""
    if history.is_over:
        return ""
    if history.state == "paused" and history.is_undoing:
        return f"karmactl playbook resume {run}, which goes on taking it back"
    if history.state == "paused":
        return f"karmactl playbook resume {run}, or to take it back: karmactl playbook abort {run}"
    return f"nothing while it is under way; if its machine is dead: karmactl playbook resume {run} --takeover"


@contextmanager
def _ctrl_c(runner: Runner, tell: Callable[[str], None]) -> Iterator[None]:
    """Let the first Ctrl-C end the run in an orderly way; the second one ends it where it is."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        runner.stop()
        tell("Ctrl-C: the step under way ends, then what was done is undone; once more stops at once")
        with suppress(ValueError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (ValueError, RuntimeError, NotImplementedError):
        # Only a main thread has signals; tests and dashboards call from others.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


# -- Where it is called from -----------------------------------------------------------------------------


@asynccontextmanager
async def sitting(
    desk: Desk,
    *,
    tell: Callable[[str], None],
    say: Callable[[str, str, str], None],
    approve: Callable[[str], Awaitable[bool]],
    max_hosts: int = MAX_HOSTS,
    begin: Callable[[str, str], None] | None = None,
    watch: Callable[[JournalEntry], None] | None = None,
) -> AsyncIterator[Playbooks]:
    """Open an operator's desk: connections and journal, closed at the end.

    `tell` gets lines for the operator, `watch` each entry of the journal as it is added, the others are the
    world's. Raises PlaybookError.
    """

    def connect(address: str) -> AsyncClient:
        return connect_async(
            address, target="any", max_attempts=1, read_only=desk.is_read_only, **desk.client_options
        )

    found = {entry.name: entry for entry in entries(desk.tables)}
    world = World(
        found,
        connect,
        say,
        approve,
        lambda entry: _secret(entry, desk.environ),
        desk.state / "runs",
        max_hosts,
    )
    if begin is not None:
        world.begin = begin
    journal = Journal(desk.journal_path, watch)
    try:
        playbooks = Playbooks(
            world, journal, desk.cluster, desk.is_production, tell, desk.state / "events", desk.is_read_only
        )
        # What an earlier process could not send any more.
        playbooks.publish()
        yield playbooks
    finally:
        await world.close()
        journal.close()


def _secret(entry: Entry, environ: Mapping[str, str]) -> str | None:
    """The password for sudo on a node's host, None where none is wanted. Raises PlaybookError."""
    if not entry.sudo:
        return None
    if entry.sudo_password_env:
        found = environ.get(entry.sudo_password_env)
        if not found:
            raise PlaybookError(
                f"the environment has no {entry.sudo_password_env}", f"{entry.name} wants it for sudo"
            )
        return found
    if entry.sudo_password_file:
        try:
            return Path(entry.sudo_password_file).expanduser().read_text().strip()
        except OSError as error:
            raise PlaybookError(f"{entry.sudo_password_file} cannot be read: {error.strerror}") from error
    return None
