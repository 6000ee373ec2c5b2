"""Where a command goes and how it behaves: flags, then environment, then the context's file.

The target is `--node`, else `KARMACTL_NODES`, else `--context`, else `KARMACTL_CONTEXT`, else the current
context, else 127.0.0.1:8080. A context's other settings, its token above all, count when the nodes are its
own or the context was named as strongly as the nodes were: a token never goes by accident to a node that its
context does not have.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from karmactl.contexts import Context, ContextFile, normal_address, tilde
from karmactl.diagnostics import CtlError, Exit, suggestion, usage

DEFAULT_NODE = "127.0.0.1:8080"
DEFAULT_TIMEOUT_SECONDS = 5.0
DEFAULT_WAIT_SECONDS = 60.0
TOKEN_VARIABLE = "KARMACTL_TOKEN"  # noqa: S105  its name
LIKENESS = 0.85
"""How like one of ours a variable's name is that was meant to be it; others may be somebody's own."""
FORMATS = ("table", "json", "jsonl", "csv")


class Global(NamedTuple):
    """A global option. `key` is its name among the flags and, with `in_file`, in a context's table."""

    key: str
    kind: str
    help: str
    metavar: str = ""
    env: str = ""
    in_file: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()
    short: str = ""

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return "--" + self.key.replace("_", "-")


GLOBALS: tuple[Global, ...] = (
    Global("node", "node", "a node; may be repeated", "HOST:PORT", env="KARMACTL_NODES", many=True),
    Global("context", "context", "a cluster of the configuration", "NAME", env="KARMACTL_CONTEXT"),
    Global(
        "output",
        "choice",
        "how to print data",
        env="KARMACTL_OUTPUT",
        in_file=True,
        choices=FORMATS,
        short="o",
    ),
    Global("fields", "text", "only these fields, in this order", "A,B,…"),
    Global("watch", "seconds", "print again every so often until Ctrl-C", "SECONDS"),
    Global("wait_until", "text", "wait for healthy, caught-up or lsn=N first", "STATE"),
    Global(
        "timeout",
        "seconds",
        "how long one request may take (5), or all of --wait-until (60)",
        "SECONDS",
        env="KARMACTL_TIMEOUT",
        in_file=True,
    ),
    Global("dry_run", "flag", "show what would be sent, change nothing"),
    Global("yes", "flag", "answer plain questions with yes", short="y"),
    Global("confirm", "text", "the name that a typed confirmation asks for", "NAME"),
    Global("read_only", "flag", "refuse every command that writes", env="KARMACTL_READ_ONLY", in_file=True),
    Global("token_file", "path", "file with the token", "FILE", env="KARMACTL_TOKEN_FILE", in_file=True),
    Global(
        "token_env",
        "text",
        "environment variable with the token (default KARMACTL_TOKEN)",
        "NAME",
        in_file=True,
    ),
    Global(
        "follow_hints",
        "flag",
        "go, token and all, to masters that are not among the nodes",
        env="KARMACTL_FOLLOW_HINTS",
        in_file=True,
    ),
    Global("tls", "flag", "speak TLS", env="KARMACTL_TLS", in_file=True),
    Global(
        "tls_ca",
        "path",
        "certificates to trust instead of the system's",
        "FILE",
        env="KARMACTL_TLS_CA",
        in_file=True,
    ),
    Global("tls_cert", "path", "client certificate", "FILE", env="KARMACTL_TLS_CERT", in_file=True),
    Global("tls_key", "path", "its key", "FILE", env="KARMACTL_TLS_KEY", in_file=True),
    Global("no_color", "flag", "no colours (as NO_COLOR)"),
    Global("verbose", "flag", "say more on stderr", short="v"),
)
"""Every global option, in the order of the help."""


class Value(NamedTuple):
    """A setting and where it came from."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a command goes by. `values` has every global option by key, resolved."""

    values: Mapping[str, Value]
    nodes: tuple[str, ...]
    nodes_source: str
    context: Context | None
    context_source: str
    production: Context | None
    """The context whose name destructive commands ask for, None outside production."""
    notes: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.values[key].value

    @property
    def request_seconds(self) -> float:
        """How long one request may take."""
        waits_long = self["wait_until"] is not None
        chosen = self["timeout"]
        return DEFAULT_TIMEOUT_SECONDS if chosen is None or waits_long else float(chosen)

    @property
    def wait_seconds(self) -> float:
        """How long --wait-until may take."""
        return DEFAULT_WAIT_SECONDS if self["timeout"] is None else float(self["timeout"])


def seconds(text: str) -> float:
    """Return the seconds of `5`, `0.5`, `500ms`, `5s`, `2m` or `1h`. Raises ValueError for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = text.strip().lower()
    for unit, factor in units.items():
        if number.endswith(unit):
            number, scale = number[: -len(unit)], factor
            break
    else:
        scale = 1.0
    value = float(number) * scale
    if not 0 < value < 1e9:
        raise ValueError(text)
    return value


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], file: ContextFile) -> Settings:
    """Resolve every setting. Raises CtlError for an unknown context or a value that cannot be used."""
    notes = mistyped(environ, file)
    name, name_source, name_rank = _context_name(flags, environ, file)
    context = None if name is None else _context(file, name, name_source)
    own = (
        {} if context is None else {node["name"]: node["address"] for node in context.nodes if "name" in node}
    )
    words: tuple[str, ...] = tuple(flags.get("node") or ())
    nodes_source, nodes_rank = "--node", 2
    if not words and environ.get("KARMACTL_NODES"):
        words = tuple(environ["KARMACTL_NODES"].replace(",", " ").split())
        if not words:
            raise _unusable(
                "KARMACTL_NODES", environ["KARMACTL_NODES"], "nodes, as 10.0.0.1:8080,10.0.0.2:8080"
            )
        nodes_source, nodes_rank = "KARMACTL_NODES", 1
        if flags.get("context"):
            notes.append(f"KARMACTL_NODES wins over --context {name}: talking to {', '.join(words)}")
    nodes = tuple(dict.fromkeys(_address(own.get(word, word), nodes_source) for word in words))
    if context is not None and nodes and name_rank < nodes_rank and not set(nodes) <= set(context.addresses):
        context = None
    if not nodes and context is not None:
        nodes, nodes_source = context.addresses, f"context {context.name}"
    if not nodes:
        nodes, nodes_source = (DEFAULT_NODE,), "default"
    values = {setting.key: _value(setting, flags, environ, context, file) for setting in GLOBALS}
    _one_token(values)
    production = context if context is not None and context.is_production else None
    # A production node stays one, however it was named.
    production = production or next(filter(None, map(file.of_node, nodes)), None)
    return Settings(
        values, nodes, nodes_source, context, name_source if context else "", production, tuple(notes)
    )


def mistyped(environ: Mapping[str, str], file: ContextFile) -> list[str]:
    """Return a sentence for each variable whose name is nearly that of one of ours, and so has no effect."""
    ours = {setting.env for setting in GLOBALS if setting.env} | {TOKEN_VARIABLE}
    chosen = {value for context in file.contexts.values() for value in context.variables}
    return [
        f"{name} is not a variable of karmactl and has no effect; {proposal}"
        for name in sorted(environ)
        if name.startswith("KARMACTL_") and name not in ours | chosen
        if (proposal := suggestion(name, ours, cutoff=LIKENESS))
    ]


def exposed_token(settings: Settings) -> str | None:
    """Return a sentence about the token's file where others of this machine can read it."""
    named = settings["token_file"]
    return None if named is None else exposed_file(Path(named).expanduser())


def exposed_file(path: Path, kind: str = "token file") -> str | None:
    """Return a sentence about a file with a secret that others of this machine can read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        # What needs the token says so.
        return None
    is_exposed = mode & (stat.S_IRWXG | stat.S_IRWXO)
    return f"others can read the {kind} {path}: chmod 600 {shlex.quote(str(path))}" if is_exposed else None


def _address(word: str, source: str) -> str:
    try:
        return normal_address(word)
    except CtlError as error:
        if source.startswith("--"):
            raise
        raise _blaming(source, error) from error


def _context(file: ContextFile, name: str, source: str) -> Context:
    try:
        return file.get(name)
    except CtlError as error:
        if source.startswith("--"):
            raise
        raise _blaming(source, error) from error


def _blaming(source: str, error: CtlError) -> CtlError:
    """Return an error of a value that did not come from the command line, with where it came from."""
    return CtlError(error.code, f"{source}: {error.message}", fault="configuration", advice=error.advice)


def _context_name(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: ContextFile
) -> tuple[str | None, str, int]:
    """The chosen context, where the choice came from, and how strong that is (2 flag, 1 environment)."""
    if flags.get("context"):
        return flags["context"], "--context", 2
    if environ.get("KARMACTL_CONTEXT"):
        return environ["KARMACTL_CONTEXT"], "KARMACTL_CONTEXT", 1
    if file.current:
        return file.current, f"current in {tilde(file.path)}", 0
    return None, "", 0


def _value(
    setting: Global,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    context: Context | None,
    file: ContextFile,
) -> Value:
    flag = flags.get(setting.key)
    if flag not in (None, ()):
        return Value(flag, setting.flag)
    text = environ.get(setting.env, "") if setting.env and not setting.many else ""
    if text:
        return Value(_parse(setting, text, setting.env), setting.env)
    if context is not None and setting.in_file and setting.key in context.settings:
        found = context.settings[setting.key]
        source = f"context {context.name} in {tilde(file.path)}"
        return Value(_parse(setting, found, source) if isinstance(found, str) else found, source)
    return Value(False if setting.kind == "flag" else None, "default")


def _parse(setting: Global, text: str, source: str) -> Any:
    """The value of a text from the environment or the file."""
    if setting.kind == "flag":
        if text.lower() not in {"1", "true", "yes", "0", "false", "no"}:
            raise _unusable(source, text, "1 or 0, true or false")
        return text.lower() in {"1", "true", "yes"}
    if setting.kind == "seconds":
        try:
            return seconds(text)
        except ValueError:
            raise _unusable(source, text, "seconds, as 5, 500ms or 2m") from None
    if setting.choices and text not in setting.choices:
        raise _unusable(source, text, " or ".join(setting.choices))
    return text


def _unusable(source: str, text: str, takes: str) -> CtlError:
    return CtlError(
        Exit.USAGE, f'"{text}" cannot be used ({source})', fault="configuration", advice=f"it takes {takes}"
    )


def _one_token(values: dict[str, Value]) -> None:
    """Leave one reference to a token, the stronger one: a flag over the environment over the file."""
    both = values["token_file"], values["token_env"]
    if None in {one.value for one in both}:
        return
    strength = [
        0 if one.source.startswith("context ") else 2 if one.source.startswith("--") else 1 for one in both
    ]
    if strength[0] == strength[1]:
        raise usage("--token-file and --token-env exclude each other", "leave one of them out")
    weaker = "token_env" if strength[0] > strength[1] else "token_file"
    values[weaker] = Value(None, "default")


def token(settings: Settings, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the token and where it came from; None without one. Raises CtlError when it cannot be read.

    The file or variable that the settings name; without either, `KARMACTL_TOKEN`, which counts as the
    environment: it wins over a context's reference and loses to a flag's.
    """
    file, variable = settings.values["token_file"], settings.values["token_env"]
    is_from_file = "context " in file.source + variable.source
    implicit = environ.get(TOKEN_VARIABLE)
    if implicit and (is_from_file or (file.value is None and variable.value is None)):
        return implicit, TOKEN_VARIABLE
    if variable.value is not None:
        found = environ.get(variable.value)
        if not found:
            raise _no_token(f"the environment has no {variable.value}", variable.source)
        return found, f"{variable.value} ({variable.source})"
    if file.value is not None:
        path = Path(file.value).expanduser()
        try:
            found = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise _no_token(f"{path} cannot be read: {reason}", file.source) from error
        if not found:
            raise _no_token(f"{path} is empty", file.source)
        return found, f"{path} ({file.source})"
    return None, ""


def _no_token(problem: str, source: str) -> CtlError:
    return CtlError(
        Exit.USAGE,
        f"no token: {problem}",
        fault="configuration",
        advice=f"{source} names it; put the token there",
    )
