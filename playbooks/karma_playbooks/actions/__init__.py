"""What carries actions out. A function takes an `Act` and returns what the action gives back.

It raises one of three: `NotDoneError` (it surely did not happen, or what was looked for is not so),
`UnsureError` (it may have happened, or could not be looked at), `WrongError` (it happened, and not as it
should).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from karma_client import KarmaError, ReplyError, UnreachableError
from karma_client import errors as client
from karma_client.calls import REPEATABLE_WRITES
from karma_playbooks.catalog import BY_NAME
from karma_playbooks.history import History
from karma_playbooks.world import World

_SURE = (UnreachableError, client.ClosedError, client.InvalidArgumentError, client.NoMasterError)


class NotDoneError(Exception):
    """It surely did not happen; of a look: it is not so."""


class UnsureError(Exception):
    """Nobody knows: it may have happened, or it could not be seen."""


class VanishedError(UnsureError):
    """It was begun and is not under way any more: what it led to may tell."""


class DeclinedError(NotDoneError):
    """The operator did not want it."""


class WrongError(Exception):
    """It happened, and what came of it is not what was wanted."""

    def __init__(self, message: str, output: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.output = dict(output or {})


@dataclass(slots=True)
class Act:
    """One action under way. `key` names it on hosts: `RUN/STEP.ATTEMPT`."""

    world: World
    history: History
    action: str
    node: str | None
    args: Mapping[str, Any]
    step: str
    key: str
    timeout_seconds: float
    blind_seconds: float | None = None
    """How long a look that waits may go on while it cannot see anything; None: as long as it waits."""
    found: dict[str, Any] = field(default_factory=dict)
    """What was looked at last: the evidence."""

    @property
    def target(self) -> str:
        """The node's name; only for actions that have one."""
        assert self.node is not None
        return self.node

    async def ask(self, op: str, node: str | None = None, **fields: Any) -> Any:
        """Return a node's response (the target's if none is named). Raises NotDoneError and UnsureError."""
        try:
            return await self.world.ask(node or self.target, op, **fields)
        except ReplyError as error:
            # Only after a bug of the server nobody can promise that nothing changed.
            kind = UnsureError if isinstance(error, client.InternalError) else NotDoneError
            raise kind(str(error)) from error
        except KarmaError as error:
            # What the client may send twice may have arrived once before the connection was refused.
            is_sure = (
                isinstance(error, _SURE) and BY_NAME[self.action].changes and op not in REPEATABLE_WRITES
            )
            raise (NotDoneError if is_sure else UnsureError)(str(error)) from error

    async def order(self, op: str, **fields: Any) -> Any:
        """Change the target's role on behalf of the run. Raises NotDoneError and UnsureError."""
        guard = self.world.guard
        about = guard.order(self.target) if guard is not None else {"run": self.history.run}
        return await self.ask(op, **fields, **about)


Function = Callable[[Act], Awaitable[Mapping[str, Any] | None]]


def function(action: str) -> Function:
    """Return what carries an action out; its module is loaded for that."""
    from importlib import import_module  # noqa: PLC0415  a list of books needs none of them

    place, _, verb = action.partition(".")
    module, name = _PLACES.get(action, _PLACES.get(place, ("here", "")))
    found: Function = getattr(
        import_module(f"karma_playbooks.actions.{module}"), name or (verb or action) + "_"
    )
    return found


async def carry_out(act: Act) -> Mapping[str, Any] | None:
    """Carry an action out. Raises the three errors and no other: what nobody foresaw is unknown, too."""
    try:
        return await function(act.action)(act)
    except TimeoutError:
        raise
    except OSError as error:
        raise UnsureError(str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        where = f"{act.node} answered" if act.node else "there was an answer"
        reason = f"{type(error).__name__}: {error}"
        raise UnsureError(f"{where} in a form that this version does not know ({reason})") from error


_PLACES: dict[str, tuple[str, str]] = {
    "karma": ("karma", ""),
    "service": ("hosts", "command_"),
    "ssh": ("hosts", "command_"),
    "file.put": ("hosts", "command_"),
    "file.is": ("hosts", "file_is_"),
    "service.is": ("hosts", "service_is_"),
    "ssh.check": ("hosts", "check_"),
    "karma.fence_offline": ("hosts", "command_"),
    "karma.fenced_offline": ("hosts", "fenced_offline_"),
    "karma.backup": ("hosts", "command_"),
    "karma.backup_good": ("hosts", "check_"),
    "karma.salvage": ("salvage", "salvage_"),
    "karma.salvage_good": ("salvage", "salvage_good_"),
    "karma.replay": ("salvage", "replay_"),
    "karma.replayed": ("salvage", "replayed_"),
}
"""Module and function of actions, by name or by what comes before the dot."""
