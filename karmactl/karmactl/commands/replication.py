"""replication status, watch, promote, follow, pause, resume, fence, unfence, wait, checksum."""

from __future__ import annotations

from typing import Any, NoReturn

from karma_client.errors import KarmaError
from karma_client.nodes import Node
from karmactl import fleet, watching
from karmactl.commands.observe import raise_if_silent
from karmactl.contexts import normal_address
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.failures import translated
from karmactl.fleet import NodeState
from karmactl.output import Row
from karmactl.run import Run

WATCH_SECONDS = 1.0


def status(run: Run) -> list[Row]:
    """Show every node's role and position, with everything it says in JSON."""
    nodes = fleet.read(run)
    raise_if_silent(run, [node.error for node in nodes])
    return [_row(node) for node in nodes]


def _row(node: NodeState) -> Row:
    known = node.error is None
    return {
        "node": node.address,
        "state": node.state,
        "epoch": None,
        "lsn": node.lsn if known else None,
        "lag_entries": node.lag_entries,
        "lag_ms": None,
        "source": None,
        "error": node.reason or node.replication.get("replication_last_poll_error"),
        **node.replication,
        "role": node.role if known else None,
    }


def watch(run: Run) -> NoReturn:
    """Show the status again and again."""
    watching.watch(run, lambda: status(run), run.settings["watch"] or WATCH_SECONDS)


def promote(run: Run, *, force: bool) -> Row:
    """Make a slave the master, after a question."""
    node = run.one_node()
    found = run.at(node, "replication.status")
    _agree(
        run,
        f"make {node} ({found['role']}, LSN {found.get('replayed_lsn') or found['wal_current_lsn']}, "
        f"{found['replication_lag_entries']} entries behind) the master; writes that it lacks are lost",
        force=force,
    )
    return _changed(run, "replication.promote", force=force or None)


def follow(run: Run, source: str, source_token_env: str | None, *, rebuild: bool, force: bool) -> Row:
    """Make a node a slave of another, after a question; a rebuild asks for the node's address to be typed."""
    node = run.one_node()
    target = Node.parse(normal_address(source))
    if target.path is not None:
        raise usage("a node cannot follow a Unix socket", "give HOST:PORT")
    act = f"make {node} a slave of {target}, so that it takes no more writes"
    if rebuild:
        run.confirm(f"{act} and moves its own data aside", typed=node)
    else:
        _agree(run, act, force=force)
    token = None
    if source_token_env is not None:
        token = run.environ.get(source_token_env)
        if not token:
            raise usage(f"the environment has no {source_token_env}", "put the source's token there")
    return _changed(
        run,
        "replication.follow",
        host=target.host,
        port=target.port,
        source_token=token,
        rebuild=True if rebuild else None,
        force=force or None,
    )


def pause(run: Run, for_: float, *, force: bool) -> Row:
    """Refuse writes for a while, after a question."""
    _agree(run, f"make {run.one_node()} refuse writes for {for_:g} s", force=force)
    return _changed(run, "replication.pause", ttl_ms=max(1, round(for_ * 1000)), force=force or None)


def resume(run: Run, *, force: bool) -> Row:
    """Take writes again, after a question where that overrides another run."""
    if force:
        _agree(run, f"make {run.one_node()} take writes again, as its role allows", force=True)
    return _changed(run, "replication.resume", force=force or None)


def fence(run: Run, epoch: int, reason: str, *, force: bool) -> Row:
    """Refuse writes for good, after a question."""
    run.confirm(f"make {run.one_node()} refuse writes until it is unfenced, promoted or made a follower")
    return _changed(run, "replication.fence", epoch=epoch, reason=reason, force=force or None)


def unfence(run: Run, epoch: int, *, force: bool) -> Row:
    """Take a fence away, after a question."""
    _agree(run, f"make {run.one_node()} take writes again, as its role allows", force=force)
    return _changed(run, "replication.unfence", epoch=epoch, force=force or None)


def _agree(run: Run, act: str, *, force: bool) -> None:
    """Ask; what overrides a playbook's run asks for the node's address to be typed."""
    if force:
        run.confirm(f"{act}, although a run may hold it", typed=run.one_node())
    else:
        run.confirm(act)


def _changed(run: Run, op: str, **fields: Any) -> Row:
    """Send an operation to the node and return what it says it changed."""
    node = run.one_node()
    found = run.at(node, op, **{name: value for name, value in fields.items() if value is not None})
    return {"node": node, **(found if isinstance(found, dict) else {"done": found})}


def wait(run: Run, acks: int, lsn: int | None) -> Row:
    """Wait for followers. Exit code 6 when too few had it in time."""
    timeout_ms = round(run.settings.request_seconds * 1000)
    client = run.client("master").with_timeout(run.settings.request_seconds + 2.0)
    found: dict[str, Any] = client.call("replication.wait", lsn=lsn, acks=acks, timeout_ms=timeout_ms)
    if found["acks"] < acks:
        run.exit_code = Exit.TIMEOUT
        run.talk.warn(
            f"{found['acks']} of {acks} followers have LSN {found['lsn']} after {timeout_ms / 1000:g} s"
        )
    return found


def checksum(run: Run) -> list[Row]:
    """Compare digests. Exit code 8 when they differ at one LSN."""
    found = run.each(lambda node: _checksum(run, node))
    raise_if_silent(run, [error for _, error in found])
    digests: dict[int, set[str]] = {}
    for row, error in found:
        if error is None:
            digests.setdefault(row["lsn"], set()).add(row["digest"])
    if any(len(different) > 1 for different in digests.values()):
        run.exit_code = Exit.UNHEALTHY
        run.talk.warn("nodes at the same LSN hold different data")
    elif len(digests) > 1:
        run.talk.warn("the nodes are at different LSNs, so that their digests cannot be compared: try again")
    return [row for row, _ in found]


def _checksum(run: Run, node: str) -> tuple[dict[str, Any], CtlError | None]:
    try:
        found = run.at(node, "replication.checksum")
    except KarmaError as problem:
        error = translated(problem, run)
        return {"node": node, "lsn": None, "digest": None, "error": error.message}, error
    return {"node": node, "lsn": found["lsn"], "digest": found["digest"], "error": None}, None
