"""Carrying a plan out: intent, act, outcome, evidence; and what to do when any of it goes wrong.

- Nothing is done before its intent is in the journal, and nothing is done twice: an attempt without a sure
  outcome
  is looked at first, on the host and through the step's own `verify`.
- A step that fails before the point of no return turns the run round: everything that happened is undone,
  last
  first. Behind it, or when nobody can tell what happened, the run stops as `paused` and says how to go on.
- Going on looks again at what was done since the last step that nothing takes back: what no longer holds (a
  pause
  that ended by itself) is done anew, as a new attempt.
- Between a pause and the promotion writers wait: no host is asked and no copy of the journal is made then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from karma_client import KarmaError
from karma_playbooks import catalog, supersession, values
from karma_playbooks.actions import (
    Act,
    DeclinedError,
    NotDoneError,
    UnsureError,
    VanishedError,
    WrongError,
    carry_out,
)
from karma_playbooks.errors import PlaybookError
from karma_playbooks.history import Attempt, Cause, History
from karma_playbooks.journal import Journal
from karma_playbooks.lock import Lock, LostLockError, NoMajorityError
from karma_playbooks.mirror import Mirror
from karma_playbooks.plan import Doing, Plan, PlannedStep, Work
from karma_playbooks.world import World

T = TypeVar("T")
Ending = Literal["done", "undone", "paused", "superseded"]


class _Failed(Exception):  # noqa: N818  how a run turns round
    """A step did not work, and everybody knows what happened and what did not."""


class _CalledOff(_Failed):
    """The operator does not want the run any more."""


class _Stuck(Exception):  # noqa: N818  how a run stops
    """Nobody knows what happened, or it must not be taken back: a person decides."""


@dataclass(slots=True)
class Runner:
    """One run, under way on this machine. `tell` is called with a line for the operator."""

    journal: Journal
    world: World
    plan: Plan
    history: History
    lock: Lock
    mirror: Mirror
    tell: Callable[[str], None]
    publish: Callable[[], None]
    """Sends events of what the journal holds; never while writers wait."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _resumed: bool = False
    _warned: set[str] = field(default_factory=set)
    """Warnings that were given: each once is enough."""

    # -- From outside ------------------------------------------------------------------------------------

    async def go(self) -> Ending:
        """Carry the run on to an end. Raises JournalError when that cannot be recorded."""
        self._resumed = self.history.epoch > 1
        try:
            if self._resumed and await self._is_superseded():
                pass
            elif self.history.is_undoing:
                await self._undo()
            else:
                self._note("state", state="running", why="")
                await self._forward()
        except _Stuck as stuck:
            await self._stop_at(str(stuck))
        except LostLockError as lost:
            # Not a word into the journal: whoever holds the lock writes the story now.
            self.tell(f"paused here: {lost}")
            return "paused"
        await self._copy()
        return self._ending

    @property
    def _ending(self) -> Ending:
        match self.history.state:
            case "done" | "undone" | "superseded" as ending:
                return ending
        return "paused"

    async def _stop_at(self, why: str, *, gives_up: bool = False) -> None:
        """Note that the run stopped, and whether there is anything left to resume."""
        if not await self._is_superseded(gives_up=gives_up):
            self._note("state", state="paused", why=why)
            self.tell(f"paused: {why}")

    async def _is_superseded(self, *, gives_up: bool = False) -> bool:
        """End the run if another node became master meanwhile; returns whether that is so."""
        names = list(self.world.entries)
        found = await asyncio.gather(*map(self._status, names))
        statuses = {name: status for name, status in zip(names, found, strict=True) if status is not None}
        over = supersession.judge(self.plan, self.history, statuses, gives_up=gives_up)
        if over is None:
            return False
        why = "; ".join((over.why, *over.left))
        self._note("state", state="superseded", why=why, ruler=over.ruler, rejoin=list(over.rejoin))
        self.tell(f"superseded: {why}")
        return True

    async def _status(self, name: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = await self.world.ask(name, "replication.status")
        except KarmaError:
            return None
        return found

    def stop(self) -> None:
        """Let the step under way end, a mere look at once, and undo what was done."""
        self._stopping.set()

    async def leave(self) -> None:
        """Note that it was stopped where it was, after `go` or `abort` was cancelled."""
        # Why it was turned round outweighs why it stopped.
        self._note("state", state="paused", why=self.history.why or _STOPPED_HERE)
        await self._copy()

    async def abort(self) -> Ending:
        """Take everything back that happened; refused behind the point of no return, where the run stays
        paused.
        """
        try:
            await self._settle_open()
            self._refuse_behind_no_return("it cannot be taken back")
            await self._turn_round("the operator gave it up", "operator")
        except _Stuck as stuck:
            await self._stop_at(str(stuck), gives_up=True)
        await self._copy()
        return self._ending

    # -- Forward -----------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        steps = [step for step in self.plan.steps if not step.skipped]
        try:
            # What may have happened decides where to begin: behind a promotion nothing before it holds.
            await self._settle_open()
            for step in steps[self._first_to_do(steps) :]:
                self._heed_ctrl_c()
                if not step.in_window:
                    await self._copy()
                    await self._check_lock(step)
                await self._step(step)
        except _Failed as failed:
            self._refuse_behind_no_return(str(failed))
            await self._turn_round(str(failed), "operator" if isinstance(failed, _CalledOff) else "failure")
            return
        self._note("state", state="done", why="")
        self.tell("done")

    def _heed_ctrl_c(self) -> None:
        if self._stopping.is_set():
            raise _CalledOff("interrupted with Ctrl-C")

    def _first_to_do(self, steps: list[PlannedStep]) -> int:
        """Where to begin: at the last step that happened and that nothing takes back, else at the first."""
        passed = [
            at for at, step in enumerate(steps)
            if step.irreversible and any(self.history.happened(step.id, work.target) for work in step.works)
        ]  # fmt: skip
        return passed[-1] if passed else 0

    def _refuse_behind_no_return(self, why: str) -> None:
        for step in self.plan.steps:
            for work in step.works:
                attempt = self.history.last(step.id, work.target)
                has_happened = self.history.happened(step.id, work.target)
                if step.irreversible and attempt is not None and (attempt.is_open or has_happened):
                    raise _Stuck(f"{why}; {step.id} is behind the point of no return: {step.irreversible}")

    async def _check_lock(self, step: PlannedStep) -> None:
        if step.changes:
            try:
                await self.lock.check()
            except NoMajorityError as error:
                raise _Stuck(f"{step.id} was not begun: {error}") from error

    async def _step(self, step: PlannedStep) -> None:
        question = f"Go on with {step.id}: {step.title or step.works[0].doing.command}"
        if step.approval and not await self._unless_stopped(self.world.approve(question)):
            raise _CalledOff(f"{step.id}: the operator did not approve")
        self.tell(f"{step.id}: {step.title or step.works[0].doing.command}")
        waiting = list(step.works)
        while waiting:
            batch, waiting = waiting[: step.parallel], waiting[step.parallel :]
            results = await asyncio.gather(
                *(self._work(step, each) for each in batch), return_exceptions=True
            )
            # What is unsure weighs more than what is surely wrong.
            problems = [result for result in results if isinstance(result, BaseException)]
            for kind in (_Stuck, BaseException):
                for problem in problems:
                    if isinstance(problem, kind):
                        raise problem

    async def _work(self, step: PlannedStep, work: Work) -> None:
        self.world.begin(step.id, work.target)
        await (self._change if step.changes else self._look)(step, work)

    async def _look(self, step: PlannedStep, work: Work) -> None:
        """Carry out a step that changes nothing."""
        for attempt in range(step.retries + 1):
            try:
                act = self._act(step, work.doing, f"look-{attempt}")
                act.blind_seconds = _SILENT_SECONDS
                async with asyncio.timeout(step.timeout_seconds):
                    output = await self._unless_stopped(carry_out(act))
            except (NotDoneError, UnsureError, TimeoutError) as error:
                if attempt < step.retries:
                    await asyncio.sleep(step.retry_wait_seconds)
                    continue
                kind = _CalledOff if isinstance(error, DeclinedError) else _Failed
                raise kind(f"{step.id}: {_words(error, step)}") from error
            self._note("seen", step=step.id, target=work.target, output=dict(output or {}), found=act.found)
            if work.doing.action == "note":
                self._note("note", text=act.args["text"], outcome="unknown")
                self.tell(f"unknown: {act.args['text']}")
            return

    async def _unless_stopped(self, looking: Awaitable[T]) -> T:
        """Wait for a look, which Ctrl-C may break off: it changes nothing."""
        look, stop = asyncio.ensure_future(looking), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({look, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not look.done():
                self._heed_ctrl_c()
            return await look
        finally:
            stop.cancel()
            look.cancel()

    async def _change(self, step: PlannedStep, work: Work) -> None:
        """Carry out a step that changes something, unless it has happened."""
        last = self.history.last(step.id, work.target)
        if last is not None and last.is_open:
            await self._settle(step, work, last)
        elif last is None and await self._was_done_elsewhere(step, work):
            found = self._intend(step, work, work.doing)
            self._outcome(found, "done", {}, found_done=True)
        if self.history.happened(step.id, work.target):
            problem = await self._holds(step, work.verify, "look")
            if problem is None:
                self._evidence(step, work)
                return
            if step.irreversible or isinstance(problem, UnsureError):
                raise _Stuck(f"{step.id} on {work.target} was done, and cannot be seen any more: {problem}")
            self.tell(f"{step.id} on {work.target} no longer holds ({problem}) and is done anew")
            attempt = self.history.last(step.id, work.target)
            assert attempt is not None
            self._note("lapsed", **_about(attempt), why=str(problem))
        await self._try(step, work)

    async def _was_done_elsewhere(self, step: PlannedStep, work: Work) -> bool:
        """Whether another machine did this last, which the copy of its journal may not tell."""
        if not self._resumed or catalog.BY_NAME[work.doing.action].place != "karma":
            return False
        # At once: what was never done will not come to pass by waiting, and writers may wait meanwhile.
        return await self._holds(step, tuple(map(_at_once, work.verify)), "look") is None

    async def _try(self, step: PlannedStep, work: Work) -> None:
        self._check_values(step, work)
        for number in range(step.retries + 1):
            attempt = self._intend(step, work, work.doing)
            act = self._act(step, work.doing, _suffix(attempt))
            problem: Exception | None = None
            try:
                async with asyncio.timeout(step.timeout_seconds + _GRACE_SECONDS):
                    output = await carry_out(act)
                self._outcome(attempt, "done", output)
            except NotDoneError as error:
                self._outcome(attempt, "failed", {}, str(error))
                if number < step.retries:
                    await asyncio.sleep(step.retry_wait_seconds)
                    continue
                raise _Failed(f"{step.id}: {error}") from error
            except WrongError as error:
                self._outcome(attempt, "done", error.output, str(error))
                problem = error
            except (UnsureError, TimeoutError) as error:
                self._outcome(attempt, "unknown", {}, _words(error, step))
                self.tell(f"{step.id}: nobody knows whether it happened ({_words(error, step)}); looking")
                await self._settle(step, work, attempt)
                if not self.history.happened(step.id, work.target):
                    raise _Failed(f"{step.id}: it did not happen: {_words(error, step)}") from error
            await self._prove(step, work, problem)
            return

    async def _prove(self, step: PlannedStep, work: Work, problem: Exception | None) -> None:
        """See that what was done is so."""
        found = await self._holds(step, work.verify, "verify")
        if problem is None and found is None:
            self._evidence(step, work)
            return
        what = str(problem or found)
        if step.irreversible and isinstance(found, NotDoneError):
            # It went wrong and left nothing: whoever goes on may try it again.
            attempt = self.history.last(step.id, work.target)
            assert attempt is not None
            self._note("lapsed", **_about(attempt), why=what)
        if isinstance(found, UnsureError) and problem is None:
            raise _Stuck(f"{step.id} was done, and it cannot be seen whether it worked: {what}")
        raise _Failed(f"{step.id}: {what}")

    async def _holds(
        self, step: PlannedStep, verify: tuple[Doing, ...], why: str, blind_seconds: float | None = None
    ) -> Exception | None:
        """Carry out looks; returns what does not hold, None when all do."""
        for doing in verify:
            try:
                act = self._act(step, doing, why)
            except NotDoneError as error:
                return UnsureError(str(error))
            act.blind_seconds = blind_seconds
            try:
                async with asyncio.timeout(step.timeout_seconds):
                    await carry_out(act)
            except TimeoutError as error:
                return UnsureError(_words(error, step))
            except (NotDoneError, UnsureError) as error:
                return error
        return None

    # -- What may have happened --------------------------------------------------------------------------

    async def _settle(self, step: PlannedStep, work: Work, attempt: Attempt) -> None:
        """Find out whether an open attempt happened, and note it. Raises _Stuck when that cannot be found
        out.
        """
        doing = work.doing if attempt.place < 0 else work.undo[attempt.place]
        if catalog.BY_NAME[doing.action].place == "host":
            from karma_playbooks.actions import hosts  # noqa: PLC0415  most looks are at nodes

            try:
                output = await hosts.look(self._act(step, doing, _suffix(attempt), is_evaluated=False))
            except WrongError as error:
                self._outcome(attempt, "done", error.output, str(error))
                return
            except NotDoneError as error:
                self._outcome(attempt, "failed", {}, str(error))
                return
            except VanishedError:
                # What it led to tells more.
                pass
            except UnsureError as error:
                raise _Stuck(f"nobody knows whether {step.id} happened: {error}") from error
            else:
                outcome: Literal["failed", "done"] = "failed" if output is None else "done"
                self._outcome(attempt, outcome, output or {}, "" if output else "it was never started")
                return
        if doing.node is not None and doing.action == "karma.promote":
            # The order may still be on its way: from here on it comes too late.
            await self.lock.retake(doing.node)
        looks = work.verify if attempt.place < 0 else work.undo[attempt.place + 1 :]
        seeing = tuple(_soon(doing) for doing in looks if not catalog.BY_NAME[doing.action].changes)
        problem, progress = await self._look_until_over(step, work, doing, seeing)
        if problem is None:
            self._outcome(attempt, "done", {}, found_done=True)
        elif progress == "taken":
            # That it came to its end is for whoever looks next to see.
            self._outcome(attempt, "done", {}, found_done=True, seen=str(problem))
        elif isinstance(problem, UnsureError) or progress == "being decided":
            raise _Stuck(f"nobody knows whether {step.id} happened: {problem}")
        else:
            self._outcome(attempt, "failed", {}, f"it did not happen: {problem}")

    async def _look_until_over(
        self, step: PlannedStep, work: Work, doing: Doing, seeing: tuple[Doing, ...]
    ) -> tuple[Exception | None, str]:
        """Look for what an order leads to, as long as it is under way and the step has time for it."""
        from karma_playbooks.actions import karma  # noqa: PLC0415  few looks come to this

        is_said = False
        deadline = time.monotonic() + step.timeout_seconds
        while True:
            problem = await self._holds(step, seeing, "look", _BLIND_SECONDS)
            if not isinstance(problem, NotDoneError):
                return problem, "not under way"
            try:
                progress = await karma.progress(self._act(step, doing, "look"))
            except (NotDoneError, UnsureError) as error:
                return UnsureError(str(error)), "not under way"
            if progress == "not under way" or time.monotonic() >= deadline:
                return problem, progress
            if not is_said:
                is_said = True
                self.tell(f"{step.id} on {work.target} is under way, and waited for: {problem}")
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)

    async def _settle_open(self) -> None:
        for attempt in self.history.open_attempts():
            for step in self.plan.steps:
                for work in step.works:
                    if (step.id, work.target) == (attempt.step, attempt.target):
                        await self._settle(step, work, attempt)

    # -- Back --------------------------------------------------------------------------------------------

    async def _turn_round(self, why: str, cause: Cause) -> None:
        self._note("state", state="undoing", why=why, cause=cause)
        self.tell(f"{why}: what was done is undone")
        await self._undo()

    async def _undo(self) -> None:
        await self._settle_open()
        why = self.history.why
        for step in reversed(self.plan.steps):
            for work in reversed(step.works):
                if step.changes and self.history.happened(step.id, work.target):
                    await self._undo_one(step, work)
        self._note("state", state="undone", why=why, cause=self.history.cause)
        self.tell("undone: everything is as it was before")

    async def _undo_one(self, step: PlannedStep, work: Work) -> None:
        self.world.begin(step.id, work.target)
        self.tell(f"undo {step.id}: {work.undo[0].command}")
        for place, doing in enumerate(work.undo):
            if not catalog.BY_NAME[doing.action].changes:
                problem = await self._holds(step, (doing,), "undo")
                if problem is not None:
                    raise _Stuck(f"{step.id} was taken back, and that cannot be seen: {problem}")
                continue
            last = self.history.last(step.id, work.target, place)
            if last is not None and last.outcome == "done":
                continue
            attempt = self._intend(step, work, doing, place)
            try:
                async with asyncio.timeout(step.timeout_seconds + _GRACE_SECONDS):
                    output = await carry_out(self._act(step, doing, _suffix(attempt)))
            except (NotDoneError, WrongError) as error:
                self._outcome(attempt, "failed", {}, str(error))
                raise _Stuck(f"{step.id} cannot be taken back: {error}") from error
            except (UnsureError, TimeoutError) as error:
                self._outcome(attempt, "unknown", {}, _words(error, step))
                await self._settle(step, work, attempt)
                if attempt.outcome != "done":
                    raise _Stuck(f"{step.id} was not taken back: {_words(error, step)}") from error
            else:
                self._outcome(attempt, "done", output)
        attempt_done = self.history.last(step.id, work.target)
        assert attempt_done is not None
        self._note("lapsed", **_about(attempt_done), why="undone")

    # -- The journal -------------------------------------------------------------------------------------

    def _note(self, kind: str, **data: Any) -> None:
        self.history.take(self.journal.append(self.history.run, kind, data))

    def _intend(self, step: PlannedStep, work: Work, doing: Doing, place: int = -1) -> Attempt:
        last = self.history.last(step.id, work.target, place)
        number = last.number + 1 if last is not None else 1
        about = {"step": step.id, "target": work.target, "attempt": number, "place": place}
        self._note("intent", **about, action=doing.action, command=doing.command)
        found = self.history.last(step.id, work.target, place)
        assert found is not None
        return found

    def _outcome(
        self, attempt: Attempt, outcome: str, output: Mapping[str, Any] | None, error: str = "", **more: Any
    ) -> None:
        self._note(
            "outcome", **_about(attempt), outcome=outcome, output=dict(output or {}), error=error, **more
        )

    def _evidence(self, step: PlannedStep, work: Work) -> None:
        attempt = self.history.last(step.id, work.target)
        assert attempt is not None
        self._note("evidence", **_about(attempt), seen=[doing.command for doing in work.verify])

    def _check_values(self, step: PlannedStep, work: Work) -> None:
        """Fill in what a step does, and what would take it back, before it is begun: the way back must not
        end at a value that is missing.
        """

        def lookup(name: str) -> Any:
            return None if name.startswith(f"steps.{step.id}.") else self._lookup(name)

        try:
            self._args(work.doing)
            for doing in (*work.verify, *work.undo):
                values.complete(doing.args, lookup)
        except PlaybookError as error:
            raise _Failed(f"{step.id}: {error.message}") from error

    def _args(self, doing: Doing) -> dict[str, Any]:
        return catalog.fitted(doing.action, values.complete(doing.args, self._lookup))

    def _act(self, step: PlannedStep, doing: Doing, suffix: str, *, is_evaluated: bool = True) -> Act:
        """Return an action under way. Raises NotDoneError when its arguments cannot be filled in."""
        try:
            args = self._args(doing) if is_evaluated else {}
        except PlaybookError as error:
            raise NotDoneError(error.message) from error
        return Act(
            self.world,
            self.history,
            doing.action,
            doing.node,
            args,
            step.id,
            f"{self.history.run}/{step.id}.{doing.node or 'here'}.{suffix}",
            step.timeout_seconds,
        )

    def _lookup(self, name: str) -> Any:
        scope, _, rest = name.partition(".")
        if scope == "run":
            about = {**self.history.header, "id": self.history.run, "folder": str(self.world.folder)}
            return about.get(rest) or ""
        step, _, output = rest.partition(".")
        try:
            return self.history.outputs[step][output]
        except KeyError:
            raise KeyError(f"{step} has not given it back") from None

    async def _copy(self) -> None:
        self.publish()
        for problem in await self.mirror.bring_up_to_date():
            if problem not in self._warned:
                self._warned.add(problem)
                self.tell(f"warning: no copy of the journal on {problem}")


_STOPPED_HERE = "the operator stopped it where it was; what was done stays"
_BLIND_SECONDS = 10.0
"""Whether something happened on a node that says nothing for so long, nobody knows."""
_SILENT_SECONDS = 30.0
"""How long a step that only waits for a node goes on while that says nothing: it may take an hour to catch
up, but not to answer. (What looks after a restart waits in full: a start may take minutes.)"""
_SHOWING_SECONDS = 10.0
"""By then a node shows what it was told, if it was; what it has begun by then may take longer."""
_BETWEEN_LOOKS_SECONDS = 0.2
_GRACE_SECONDS = 5.0
"""What an action that ends by its own time limit has for that, before it is cut off from outside."""


def _about(attempt: Attempt) -> dict[str, Any]:
    return {"step": attempt.step, "target": attempt.target, "attempt": attempt.number, "place": attempt.place}


def _at_once(doing: Doing) -> Doing:
    """A look that does not wait for what it looks for."""
    return replace(doing, args={name: arg for name, arg in doing.args.items() if name != "within_seconds"})


def _soon(doing: Doing) -> Doing:
    """A look that waits for what has surely begun to show, and not for what never happened."""
    within_seconds = doing.args.get("within_seconds")
    if not isinstance(within_seconds, int | float):
        return doing
    return replace(doing, args={**doing.args, "within_seconds": min(within_seconds, _SHOWING_SECONDS)})


def _suffix(attempt: Attempt) -> str:
    return str(attempt.number) if attempt.place < 0 else f"undo{attempt.place}.{attempt.number}"


def _words(error: BaseException, step: PlannedStep) -> str:
    return f"no end within {step.timeout_seconds:g} s" if isinstance(error, TimeoutError) else str(error)
