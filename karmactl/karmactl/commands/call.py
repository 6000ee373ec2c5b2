"""call: any operation with any fields."""

from __future__ import annotations

import json
from typing import Any

from karma.ops import BY_NAME
from karma.protocol.texts import spelled_out
from karmactl.diagnostics import usage
from karmactl.output import Shown, as_json
from karmactl.run import Run
from karmactl.table.entries import changes

DATA_GOES = frozenset(
    {
        "tree.drop",
        "tree.reset",
        "tree.delete_range",
        "series.delete_before",
        "counter.reset",
        "counter.batch_reset",
        "counter.delete_range",
        "counter.batch_delete_range",
        "snapshot.load",
    }
)
"""Operations after which something is gone. Their name is what the confirmation asks for."""


def call(run: Run, operation: str, field: tuple[str, ...]) -> Any:
    """Send an operation. A name that this version does not know is sent all the same."""
    op = BY_NAME[operation].name if operation in BY_NAME else operation
    fields = dict(map(parsed, field))
    if op in DATA_GOES:
        run.confirm(f"send {op} {as_json(fields)}, after which data is gone", typed=op)
    response = run.send(op, **fields) if changes(op) else run.ask(op, **fields)
    if isinstance(response, str):
        return response if run.output.form == "table" else as_json(response)
    if isinstance(response, dict) or (
        isinstance(response, list) and all(isinstance(one, dict) for one in response)
    ):
        return Shown(response, lambda _: as_json(response, indent=2).splitlines())
    return as_json(response)


def parsed(field: str) -> tuple[str, Any]:
    """Return name and value of a field: `name:=JSON`, or `name=TEXT`, where digits alone are a number."""
    name, equals, text = field.partition("=")
    if not equals or not name.rstrip(":"):
        raise usage(
            f'"{spelled_out(field)}" is no field', "write NAME=VALUE, or NAME:=JSON for anything but text"
        )
    if name in {"token", "token:"}:
        raise usage(
            "a token in the command line can be read by everybody on this machine",
            "use --token-file or --token-env",
        )
    if name.endswith(":"):
        try:
            return name[:-1], json.loads(text)
        except ValueError as error:
            raise usage(
                f"the value of {name[:-1]} is no JSON: {error}", "as NAME:='[\"text\", 7]'"
            ) from error
    return name, int(text) if text.isascii() and text.isdigit() else text
