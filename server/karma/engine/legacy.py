"""The first protocol, before 1.0: ``{"command":…,"tree_name":…,"key":…,"time_from":…,"time_to":…}``.

Only with ``--legacy-protocol=true``. A command becomes the request of protocol 2 that means the
same; the reply loses what the first protocol did not have.
"""

from __future__ import annotations

from typing import Any

import orjson

from karma.engine.dispatch import Effect, Engine, Outcome, Slices
from karma.protocol.texts import spelled_out

_OPS = {
    "ping": "system.ping",
    "trees": "tree.list",
    "create": "tree.create",
    "drop": "tree.drop",
    "increment": "counter.increment",
    "decrement": "counter.decrement",
    "sum": "counter.sum",
    "find": "counter.series",
    "reset": "counter.reset",
    "delete": "counter.delete_range",
    "dump": "snapshot.create",
    "dump_all": "snapshot.create_all",
    "dumps": "snapshot.list",
    "load": "snapshot.load",
}


def execute(engine: Engine, request: dict[str, Any]) -> Outcome:
    """Execute a command of the first protocol."""
    command = request["command"]
    op = _OPS.get(command) if isinstance(command, str) else None
    if op is None:
        engine.counters.errors += 1
        return _line(success=False, response=spelled_out(f"Unknown command {command}"))
    translated: dict[str, Any] = {"v": 2, "op": op}
    for old, new in (
        ("tree_name", "series"),
        ("key", "key"),
        ("value", "value"),
        ("token", "token"),
        ("file", "file"),
    ):
        # There null means that the field is left out.
        if request.get(old) is not None:
            translated[new] = request[old]
    if op == "snapshot.load" and "file" not in translated:
        translated["file"] = request.get("tree_name")
    if request.get("time_from") is not None or request.get("time_to") is not None:
        translated["range"] = {"from": request.get("time_from"), "to": request.get("time_to")}
    outcome = engine.execute(orjson.dumps(translated))
    if isinstance(outcome, bytes):
        return strip(outcome)
    return Effect("legacy", {"effect": outcome}) if isinstance(outcome, Effect) else _stripped(outcome)


def strip(reply: bytes) -> bytes:
    """Return a reply line of protocol 2 as the first protocol says it."""
    fields = orjson.loads(reply)
    return _line(success=fields["success"], response=fields["response"])


def _stripped(outcome: Slices) -> Slices:
    reply = yield from outcome
    return strip(reply)


def _line(*, success: bool, response: Any) -> bytes:
    return orjson.dumps({"success": success, "response": response}) + b"\r\n"
