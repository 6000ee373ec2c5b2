"""Contexts: named clusters in `$XDG_CONFIG_HOME/karmactl/config.toml`.

    current = "prod"

    [contexts.prod]
    production = true                 # colours prompts, makes destructive commands ask for the context's name
    nodes = ["10.0.0.1:8080", "10.0.0.2:8080"]
    token_file = "~/.karma/prod.token"

A token is never in the file, only where to find it: `token_file` or `token_env`. A node is an address, or a
table `[[contexts.prod.nodes]]` with an address and how to reach its host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from karmactl.diagnostics import CtlError, Exit, suggestion, usage

NODE_KEYS: dict[str, type] = {
    "address": str,
    "name": str,
    "ssh_host": str,
    "ssh_port": int,
    "ssh_user": str,
    "ssh_identity": str,
    "ssh_known_hosts": str,
    "ssh_jump": str,
    "ssh_timeout": int,
    "directory": str,
    "service": str,
    "service_command": list,
    "karma_command": list,
    "playbook_directory": str,
    "sudo": bool,
    "sudo_password_env": str,
    "sudo_password_file": str,
}
"""Keys of a node's table. `directory` is its data directory, `service` its unit for the service manager, or
`process` for a plain process that `service_command` starts."""

CONTEXT_KEYS: dict[str, type] = {
    "nodes": list,
    "token_file": str,
    "token_env": str,
    "production": bool,
    "read_only": bool,
    "follow_hints": bool,
    "timeout": str,
    "output": str,
    "tls": bool,
    "tls_ca": str,
    "tls_cert": str,
    "tls_key": str,
}
"""Keys of a context's table."""


class Context(NamedTuple):
    """One cluster. `nodes` are the tables of its nodes, `settings` all other keys of its own."""

    name: str
    nodes: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The nodes' addresses, ports spelt out."""
        return tuple(normal_address(node["address"]) for node in self.nodes)

    @property
    def variables(self) -> set[str]:
        """The names of variables that its settings and nodes refer to."""
        tables = (self.settings, *self.nodes)
        return {table[key] for table in tables for key in ("token_env", "sudo_password_env") if key in table}

    @property
    def is_production(self) -> bool:
        """Whether destructive commands ask for the context's name."""
        return bool(self.settings.get("production", False))


class ContextFile(NamedTuple):
    """What the file says; empty when there is none."""

    path: Path
    contexts: Mapping[str, Context] = MappingProxyType({})
    current: str | None = None

    def get(self, name: str) -> Context:
        """Return a context by name. Raises CtlError for an unknown one."""
        found = self.contexts.get(name)
        if found is None:
            proposal = suggestion(name, self.contexts)
            lists = "`karmactl context list` shows what there is, `karmactl context add` makes one"
            raise CtlError(
                Exit.USAGE,
                f'there is no context "{name}" in {tilde(self.path)}',
                fault="command line",
                advice=f"{proposal} {lists}".strip(),
            )
        return found

    def of_node(self, address: str) -> Context | None:
        """Return the first production context that has a node of this address."""
        for context in self.contexts.values():
            if context.is_production and address in context.addresses:
                return context
        return None


def normal_address(address: str) -> str:
    """Return an address with its port spelt out. Raises CtlError when it is none."""
    # Imported here, so that help and `karmactl spec` need not load the client.
    from karma_client.errors import InvalidArgumentError  # noqa: PLC0415
    from karma_client.nodes import Node  # noqa: PLC0415

    try:
        return str(Node.parse(address))
    except InvalidArgumentError as error:
        advice = "write HOST:PORT, as 10.0.0.1:8080 or [::1]:8080, or unix:/path/of/socket"
        raise usage(error.message, advice) from error


def config_path(environ: Mapping[str, str]) -> Path:
    """Return where the contexts are kept."""
    return _home(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"


def tilde(path: Path) -> str:
    """Return a path as people write it: with ~ for their home."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def state_path(environ: Mapping[str, str]) -> Path:
    """Return the folder of what karmactl remembers: history, unfinished transfers."""
    return _home(environ, "XDG_STATE_HOME", ".local/state")


def cache_path(environ: Mapping[str, str]) -> Path:
    """Return the folder of what can be fetched again."""
    return _home(environ, "XDG_CACHE_HOME", ".cache")


def _home(environ: Mapping[str, str], variable: str, default: str) -> Path:
    # The XDG rules say that a relative path is to be ignored.
    named = environ.get(variable, "")
    base = Path(named) if named.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / default
    return base / "karmactl"


def load(path: Path) -> ContextFile:
    """Read the file, strictly. Raises CtlError when it cannot be used; a missing one is empty."""
    document = read_document(path)
    if document is None:
        return ContextFile(path)
    problems = check(document)
    if problems:
        raise CtlError(
            Exit.USAGE,
            f"{tilde(path)}: {problems[0]}",
            fault="configuration",
            advice="`karmactl context validate` lists all that is wrong, `karmactl context edit` opens it",
        )
    contexts = {name: context_of(name, table) for name, table in document.get("contexts", {}).items()}
    return ContextFile(path, contexts, document.get("current"))


def read_document(path: Path) -> dict[str, Any] | None:
    """Return the file's tables, None when there is no file. Raises CtlError when it is no TOML."""
    if not path.exists():
        return None
    import tomllib  # noqa: PLC0415  who has no contexts need not pay for it

    from karma.ownership import who_may_write  # noqa: PLC0415

    try:
        # It says where tokens go, and which commands run on hosts.
        stranger = who_may_write(path)
        if stranger is not None:
            raise CtlError(
                Exit.USAGE,
                f"{tilde(path)} is not used: {stranger}, and could send your token elsewhere",
                fault="configuration",
                advice=f"read it, then make it yours: chown $USER {tilde(path)}; chmod 600 {tilde(path)}",
            )
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CtlError(
            Exit.USAGE,
            f"{tilde(path)} cannot be read: {reason}",
            fault="configuration",
            advice="mend the file, or move it away to start without contexts",
        ) from error


def context_of(name: str, table: Mapping[str, Any]) -> Context:
    """Return the context of a table that `check_context` found nothing wrong with."""
    nodes = tuple({"address": node} if isinstance(node, str) else node for node in table["nodes"])
    return Context(name, nodes, {key: value for key, value in table.items() if key != "nodes"})


def check(document: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the tables of a file, one sentence each."""
    problems = [
        f'unknown key "{key}"{_perhaps(key, ("current", "contexts"))}'
        for key in document
        if key not in {"current", "contexts"}
    ]
    contexts = document.get("contexts", {})
    if not isinstance(contexts, dict):
        return [*problems, "contexts must be tables, as [contexts.NAME]"]
    current = document.get("current")
    if current is not None and current not in contexts:
        problems.append(f'current is "{current}", which is no context{_perhaps(str(current), contexts)}')
    for name, table in contexts.items():
        if isinstance(table, dict):
            problems += [f"contexts.{name}: {problem}" for problem in check_context(table)]
        else:
            problems.append(f"contexts.{name} must be a table")
    return problems


def check_context(table: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one context's table."""
    problems = _check_keys(table, CONTEXT_KEYS)
    nodes = table.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        return [*problems, 'it needs nodes, as nodes = ["127.0.0.1:8080"]']
    numbers: dict[str, int] = {}
    for number, node in enumerate(nodes, 1):
        if isinstance(node, dict):
            problems += [f"node {number}: {problem}" for problem in _check_keys(node, NODE_KEYS)]
        address = node.get("address") if isinstance(node, dict) else node
        try:
            if not isinstance(address, str):
                problems.append(f"node {number} needs an address")
            elif (first := numbers.setdefault(normal_address(address), number)) != number:
                problems.append(f"node {number} has the address of node {first}: {address}")
        except CtlError as error:
            problems.append(f"node {number}: {error.message}")
    if "token_file" in table and "token_env" in table:
        problems.append("token_file and token_env exclude each other")
    return problems


def _check_keys(table: Mapping[str, Any], known: Mapping[str, type]) -> list[str]:
    problems = []
    for key, value in table.items():
        if key not in known:
            hint = (
                " (a token is never kept here: use token_file or token_env)"
                if key == "token"
                else _perhaps(key, known)
            )
            problems.append(f'unknown key "{key}"{hint}')
        elif type(value) is not known[key]:
            problems.append(f"{key} must be {_TYPE_NAMES[known[key]]}")
    return problems


_TYPE_NAMES = {str: "a text", int: "a number", bool: "true or false", list: "an array"}


def _perhaps(word: str, known: Any) -> str:
    proposal = suggestion(word, known)
    return f", {proposal}" if proposal else ""


# -- Changing the file -----------------------------------------------------------------------------------


def change(path: Path, edit: Any) -> None:
    """Apply `edit(document)` to the file, comments and order kept; the file appears whole or not at all.

    Raises CtlError when the file cannot be read or would not be valid afterwards.
    """
    import tomlkit  # noqa: PLC0415  commands that only read contexts need not pay for it

    load(path)
    document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    edit(document)
    text = tomlkit.dumps(document)
    problems = check(tomlkit.parse(text).unwrap())
    if problems:
        raise CtlError(
            Exit.USAGE, f"this would not be a valid context: {problems[0]}", fault="command line",
            advice="nothing was changed",
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
