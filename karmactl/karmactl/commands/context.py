"""context list, use, add, edit, validate, show."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karmactl import contexts, settings
from karmactl.contexts import Context, ContextFile, tilde
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.output import Row, Shown, said
from karmactl.run import Run, client_options


def list_(run: Run) -> list[Row]:
    """List the contexts."""
    file = contexts.load(contexts.config_path(run.environ))
    if not file.contexts:
        run.talk.say("there are no contexts yet: `karmactl context add NAME --nodes HOST:PORT` makes one")
    return [
        {
            "current": "*" if context.name == file.current else "",
            "context": context.name,
            "nodes": ", ".join(context.addresses),
            "production": context.is_production,
            "token": _token_reference(context) or None,
        }
        for context in file.contexts.values()
    ]


def _token_reference(context: Context) -> str:
    file, variable = context.settings.get("token_file"), context.settings.get("token_env")
    return f"file {file}" if file else f"variable {variable}" if variable else ""


def use(run: Run, name: str) -> Shown:
    """Make a context the current one."""
    path = contexts.config_path(run.environ)
    contexts.load(path).get(name)
    contexts.change(path, lambda document: document.update({"current": name}))
    return said(f"the current context is {name}", {"current": name})


def add(
    run: Run,
    name: str,
    nodes: str,
    token_from_file: str | None,
    token_from_env: str | None,
    production: str | None,
) -> Shown:
    """Add a context."""
    import tomlkit  # noqa: PLC0415  commands that only read contexts need not pay for it

    path = contexts.config_path(run.environ)
    file = contexts.load(path)
    if name in file.contexts:
        raise usage(f'there is already a context "{name}"', f"`karmactl context edit {name}` changes it")
    if not name or any(char.isspace() or char == "." for char in name):
        raise usage(f'"{name}" is no name for a context', "use letters, digits, - and _")

    def edit(document: Any) -> None:
        if "contexts" not in document:
            document["contexts"] = tomlkit.table(is_super_table=True)
        document["contexts"][name] = tomlkit.table()
        _fill(document["contexts"][name], nodes, token_from_file, token_from_env, production)
        if "current" not in document:
            _first(document, "current", name)

    table: dict[str, Any] = {}
    _fill(table, nodes, token_from_file, token_from_env, production)
    if not contexts.check_context(table):
        added = contexts.context_of(name, table)
        for problem in _listed_twice(run, file._replace(contexts={**file.contexts, name: added}), added):
            raise usage(problem, "list it once, under the address that you use")
    contexts.change(path, edit)
    return said(f"added context {name} to {tilde(path)}", {"context": name})


def _listed_twice(run: Run, file: ContextFile, context: Context) -> Iterator[str]:
    """Yield a sentence for each node that answers at two addresses of a context; silent ones are skipped."""
    from karma_client import KarmaError, connect  # noqa: PLC0415  most of these commands send nothing

    try:
        options = client_options(settings.resolve({"context": context.name}, run.environ, file), run.environ)
    except CtlError:
        # Without its token no node would say anything; other checks name that.
        return
    first: dict[str, str] = {}
    for address in context.addresses:
        try:
            with connect(address, target="any", max_attempts=1, read_only=True, **options) as client:
                node_id = client.call("replication.status").get("node_id")
        except KarmaError:
            continue
        if node_id and first.setdefault(node_id, address) != address:
            yield f"{address} is the same node as {first[node_id]}"


def _first(document: Any, key: str, value: str) -> None:
    """Put a plain key before the tables, where TOML wants it."""
    import tomlkit  # noqa: PLC0415

    rest = [(name, document[name]) for name in list(document)]
    if not rest:
        document[key] = value
        return
    text = tomlkit.dumps(document)
    document.clear()
    document.update(tomlkit.parse(f'{key} = "{value}"\n\n{text}'))


def edit(
    run: Run,
    name: str | None,
    nodes: str | None,
    token_from_file: str | None,
    token_from_env: str | None,
    production: str | None,
) -> Shown:
    """Change a context's settings, or open the file in an editor."""
    path = contexts.config_path(run.environ)
    given = (nodes, token_from_file, token_from_env, production)
    if name is None:
        if any(given):
            raise usage("these settings belong to a context", "name it: karmactl context edit NAME …")
        return _edit_file(run, path)
    contexts.load(path).get(name)
    if not any(given):
        return _edit_file(run, path)
    contexts.change(path, lambda document: _fill(document["contexts"][name], *given))
    return said(f"changed context {name} in {tilde(path)}", {"context": name})


def _fill(
    table: Any, nodes: str | None, token_file: str | None, token_env: str | None, production: str | None
) -> None:
    if nodes is not None:
        table["nodes"] = [node.strip() for node in nodes.split(",") if node.strip()]
    for key, value in (("token_file", token_file), ("token_env", token_env)):
        if value is not None:
            table.pop("token_env" if key == "token_file" else "token_file", None)
            table[key] = value
    if production is not None:
        table["production"] = production == "yes"


def _edit_file(run: Run, path: Path) -> Shown:
    editor = run.environ.get("VISUAL") or run.environ.get("EDITOR") or "vi"
    if not run.stdin.isatty():
        raise CtlError(
            Exit.REFUSED,
            "an editor needs a terminal",
            fault="command line",
            advice="change one setting: karmactl context edit NAME --nodes HOST:PORT,…",
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The editor is the user's own choice.
    finished = subprocess.run([*shlex.split(editor), str(path)], check=False)  # noqa: S603
    if finished.returncode:
        raise CtlError(
            Exit.INTERNAL, f"{editor} ended with code {finished.returncode}", fault="configuration",
            advice="set VISUAL or EDITOR to your editor",
        )  # fmt: skip
    contexts.load(path)
    return said(f"{tilde(path)} is valid", {"context": None})


def validate(run: Run) -> list[Row]:
    """List everything that is wrong with the file. Exit code 2 when there is an error."""
    path = contexts.config_path(run.environ)
    document = contexts.read_document(path)
    if document is None:
        run.talk.say(f"there is no {tilde(path)}; `karmactl context add` makes it")
        return []
    errors = contexts.check(document)
    rows: list[Row] = [{"level": "error", "place": tilde(path), "problem": problem} for problem in errors]
    if not errors:
        file = contexts.load(path)
        for context in file.contexts.values():
            rows += [
                {"level": "warning", "place": f"contexts.{context.name}", "problem": problem}
                for problem in warnings_of(run, context)
            ]
            doubles = list(_listed_twice(run, file, context))
            errors += doubles
            rows += [
                {"level": "error", "place": f"contexts.{context.name}", "problem": problem}
                for problem in doubles
            ]
    if errors:
        run.exit_code = Exit.USAGE
    elif not rows:
        run.talk.say(f"{tilde(path)} is valid")
    return rows


def warnings_of(run: Run, context: Context) -> list[str]:
    """Return what is doubtful about a context, most of all about its token."""
    found: list[str] = []
    named = context.settings.get("token_file")
    if named:
        path = Path(named).expanduser()
        try:
            path.stat()
            found += filter(None, [settings.exposed_file(path)])
            if not os.access(path, os.R_OK):
                found.append(f"you cannot read the token file {path}")
        except OSError as error:
            found.append(f"the token file {path}: {error.strerror}")
    for node in context.nodes:
        if "sudo_password_file" in node:
            path = Path(node["sudo_password_file"]).expanduser()
            found += filter(None, [settings.exposed_file(path, "password file")])
    variable = context.settings.get("token_env")
    if variable and not run.environ.get(variable):
        found.append(f"the environment has no {variable}, which holds its token")
    if context.is_production and not (named or variable):
        found.append("production without a token")
    return found


def show(run: Run, name: str | None) -> list[Row]:
    """Show what a command would run with, and where each value came from."""
    path = contexts.config_path(run.environ)
    flags = {**run.flags, "context": name} if name else run.flags
    chosen = settings.resolve(flags, run.environ, contexts.load(path))
    context = chosen.context
    rows: list[Row] = [
        _row("file", tilde(path) if path.exists() else None, "" if path.exists() else "there is none"),
        _row("context", context.name if context else None, chosen.context_source or "default"),
        _row("nodes", ", ".join(chosen.nodes), chosen.nodes_source),
        _row(
            "production",
            chosen.production is not None,
            f"context {chosen.production.name}" if chosen.production else "default",
        ),
        _token_row(run, chosen),
    ]
    shown = ("read_only", "timeout", "output", "tls", "tls_ca", "tls_cert", "tls_key")
    return rows + [_row(key, chosen[key], chosen.values[key].source) for key in shown]


def _token_row(run: Run, chosen: settings.Settings) -> Row:
    try:
        token, source = settings.token(chosen, run.environ)
    except CtlError as error:
        return _row("token", None, error.message)
    return _row("token", "********" if token else None, source or "default")


def _row(setting: str, value: Any, source: str) -> Row:
    return {"setting": setting, "value": value, "source": source}
