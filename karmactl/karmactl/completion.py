"""Live values for completion. Whatever goes wrong, nothing is proposed and nothing is said."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from karma.ops import BY_NAME
from karmactl import contexts, settings
from karmactl.contexts import ContextFile
from karmactl.settings import Settings

TIMEOUT_SECONDS = 0.5
"""Somebody waits at the keyboard."""


def propose(kind: str, flags: Mapping[str, Any], incomplete: str) -> list[tuple[str, str]]:
    """Return (value, help) of what a word may become. Never raises."""
    try:
        file = contexts.load(contexts.config_path(os.environ))
        found = _SOURCES[kind](file, settings.resolve(flags, os.environ, file))
    except Exception:  # noqa: BLE001  a key press must not fill the screen with an error
        return []
    return [(value, text) for value, text in found if value.startswith(incomplete) and _is_plain(value)]


def _is_plain(value: str) -> bool:
    """Return whether a value is one word on one line, and not an option to whatever command gets it."""
    return value.isprintable() and not value.startswith("-")


def _contexts(file: ContextFile, _settings: Settings) -> list[tuple[str, str]]:
    return [(name, ", ".join(context.addresses)) for name, context in file.contexts.items()]


def _nodes(file: ContextFile, _settings: Settings) -> list[tuple[str, str]]:
    return [
        (address, f"of {context.name}") for context in file.contexts.values() for address in context.addresses
    ]


def _operations(_file: ContextFile, _settings: Settings) -> list[tuple[str, str]]:
    return [(name, op.help) for name, op in BY_NAME.items()]


def _series(_file: ContextFile, chosen: Settings) -> list[tuple[str, str]]:
    return [(name, "") for name in _ask(chosen, "tree.list")]


def _files(_file: ContextFile, chosen: Settings) -> list[tuple[str, str]]:
    return [(path.rpartition("/")[2], "") for path in _ask(chosen, "snapshot.list")]


def _ask(chosen: Settings, op: str) -> list[str]:
    from karmactl.run import connection  # noqa: PLC0415  contexts and operations need no client

    with connection(chosen, os.environ, TIMEOUT_SECONDS) as client:
        names: list[str] = client.call_paged(op)
    return names


_SOURCES: dict[str, Callable[[ContextFile, Settings], list[tuple[str, str]]]] = {
    "context": _contexts,
    "node": _nodes,
    "operation": _operations,
    "series": _series,
    "file": _files,
}
