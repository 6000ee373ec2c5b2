"""What the client raises, in the words of karmactl: exit code, whose fault, what next."""

from __future__ import annotations

import errno
from typing import NoReturn

from karma.errors import describe_bug
from karma.ops import BY_NAME
from karma_client import errors as client
from karmactl import settings
from karmactl.diagnostics import CtlError, Exit, Fault, suggestion
from karmactl.run import Run

_CODES: tuple[tuple[type[client.KarmaError], Exit, Fault], ...] = (
    (client.NotFoundError, Exit.NOT_FOUND, "command line"),
    (client.QueryTimeoutError, Exit.TIMEOUT, "server"),
    (client.InternalError, Exit.REFUSED, "server"),
    (client.StorageError, Exit.REFUSED, "server"),
    (client.OverloadedError, Exit.REFUSED, "server"),
    (client.ReplyError, Exit.REFUSED, "command line"),
    (client.TlsError, Exit.UNREACHABLE, "configuration"),
    (client.UnreachableError, Exit.UNREACHABLE, "network"),
    (client.RequestTimeoutError, Exit.TIMEOUT, "network"),
    (client.UnknownOutcomeError, Exit.TIMEOUT, "network"),
    (client.NoMasterError, Exit.UNREACHABLE, "cluster"),
    (client.SplitBrainError, Exit.SPLIT_BRAIN, "cluster"),
    (client.ProtocolError, Exit.UNREACHABLE, "network"),
    (client.InvalidArgumentError, Exit.USAGE, "command line"),
)
"""The first that fits decides. An error reply is a refusal, but for what is missing or took too long."""


def raise_translated(error: Exception, run: Run) -> NoReturn:
    """Raise the CtlError of what the client raised, or of what was made of an answer; others as they are."""
    if isinstance(error, client.KarmaError):
        raise translated(error, run) from error
    if _is_of_an_odd_answer(error) and run.command.effect != "local":
        raise _odd_answer(error, run) from error
    raise error


_OF_ODD_ANSWERS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What Python raises when an answer lacks a field, or has one of another kind."""


def _is_of_an_odd_answer(error: Exception) -> bool:
    # EOVERFLOW is of a moment that no calendar has.
    is_no_moment = isinstance(error, OSError) and error.errno == errno.EOVERFLOW
    return isinstance(error, _OF_ODD_ANSWERS) or is_no_moment


def _odd_answer(error: Exception, run: Run) -> CtlError:
    # No check of every field of every reply beforehand: it would be a second protocol to keep up.
    return CtlError(
        Exit.UNREACHABLE,
        f"{' or '.join(run.settings.nodes)}: no Karma server, or one of another version: what it answered "
        f"has another form than {run.command.name} takes ({describe_bug(error)})",
        fault="server",
        advice="`karmactl ping` and `karmactl stats` show what is there; compare the versions",
    )


def translated(error: client.KarmaError, run: Run) -> CtlError:
    """Return the CtlError of what the client raised."""
    if isinstance(error, client.UnknownCommandError):
        return _unsupported(error, run)
    if isinstance(error, client.UnauthorizedError):
        return _unauthorized(error, run)
    code, fault = next(
        ((code, fault) for kind, code, fault in _CODES if isinstance(error, kind)),
        (Exit.INTERNAL, "karmactl"),
    )
    if isinstance(error, client.ForbiddenError) and error.reason is not None:
        fault = "cluster"
    return CtlError(code, str(error), fault=fault, advice=_advice(error, run))


def _unsupported(error: client.UnknownCommandError, run: Run) -> CtlError:
    if run.command.name == "call" and error.op not in BY_NAME:
        return CtlError(
            Exit.REFUSED,
            f"neither this karmactl nor the server at {error.node} knows an operation {error.op}",
            fault="command line",
            advice=f"{suggestion(str(error.op), BY_NAME)} `karmactl spec` lists operations".strip(),
        )
    return CtlError(
        Exit.REFUSED,
        f"{run.command.name} needs {error.op}, which the server at {error.node} does not have "
        "(Karma 1.0, or older than this karmactl)",
        fault="server",
        advice=run.command.instead or "`karmactl call` sends any operation that the server knows",
    )


def _unauthorized(error: client.UnauthorizedError, run: Run) -> CtlError:
    token, source = settings.token(run.settings, run.environ)
    if token is None:
        return CtlError(
            Exit.REFUSED,
            f"{error.node} wants a token, and none was given",
            fault="configuration",
            advice="--token-file, --token-env or KARMACTL_TOKEN gives one; a context remembers which",
        )
    return CtlError(
        Exit.REFUSED,
        f"{error.node} does not accept the token from {source}: it is wrong, or no longer valid",
        fault="configuration",
        advice=f"put the token that the server has now into {source}",
    )


def _advice(error: client.KarmaError, run: Run) -> str:
    where = f"{', '.join(run.settings.nodes)} came from {run.settings.nodes_source}"
    if isinstance(error, client.ForbiddenError):
        return _forbidden_advice(error, run)
    if isinstance(error, client.NotFoundError):
        return "`karmactl series list` and `karmactl snapshot list` show what there is"
    if isinstance(error, client.TlsError):
        return _TLS_ADVICE[error.cause]
    if isinstance(error, client.ProtocolError):
        return f"there is no Karma server, or one of another version; does it want --tls? {where}"
    if isinstance(error, client.UnreachableError):
        return f"is karma running there, and does it speak this protocol (--tls)? {where}"
    if isinstance(error, client.UnknownOutcomeError):
        return "look whether it was applied before you repeat it; with --idempotency-key repeating is safe"
    if isinstance(error, client.RequestTimeoutError):
        return f"--timeout SECONDS waits longer; {where}"
    if isinstance(error, client.NoMasterError | client.SplitBrainError):
        return "`karmactl topology` shows every node's role; there is no automatic failover"
    if isinstance(error, client.QueryTimeoutError | client.ResponseTooLargeError):
        return "ask for less at once: a shorter range, a smaller --limit"
    if isinstance(error, client.StorageError):
        return "the disk refused it and nothing was applied: `karmactl health` and the server's log say more"
    if isinstance(error, client.OverloadedError):
        return "try again in a moment; `karmactl clients` shows who is connected"
    return f"`karmactl {run.command.name} --help` shows what it takes"


_TLS_ADVICE: dict[client.TlsCause, str] = {
    "authority": "--tls-ca FILE names the authority that signed the server's certificate",
    "name": "connect by a name that the server's certificate has, or have it issued for this one",
    "time": "renew the server's certificate, and compare the clocks",
    "no tls": "the server does not speak TLS at this port: leave --tls out",
    "other": "compare --tls-ca, --tls-cert and --tls-key with the server's options",
}


def _forbidden_advice(error: client.ForbiddenError, run: Run) -> str:
    master = f" (--node {error.master}, or --follow-hints)" if error.master else ""
    match error.reason:
        case "role":
            return f"writes go to the master{master}; `karmactl topology` shows which node that is"
        case "paused":
            return f"writes are paused; they go on by themselves in {error.retry_after_ms / 1000:g} s"
        case "fenced":
            return f"the node is fenced: another one is the master now{master}; `karmactl topology` shows it"
    level = run.command.token
    needed = f"{'an' if level == 'admin' else 'a'} {level} token" if level else "another token"
    return f"the token may not do this: {run.command.name} takes {needed}, and a slave takes no writes"
