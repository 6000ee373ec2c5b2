"""Settings of the server: one table, read from the command line, the environment and a TOML file.

A field of `Config` is an option: its declaration holds the name, variable, default, accepted values and help
text, and everything else here (parsing, help, `--check-config`) walks over these declarations.

Precedence: flag > environment variable > `--config` file > default. Of a flag given twice the last counts.
An empty environment variable counts as unset, except for a token: an empty one is refused, because taking it
for "no token" would open a server whose secret merely failed to arrive.

The caller asks `action_of(argv)` what to do (`karma check|repair` are dispatched before that) and calls
`load`, which knows nothing of the real environment or disk: both are arguments.
"""

import difflib
import math
import re
import textwrap
import tomllib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final

from karma.errors import ConfigError
from karma.limits import REPLICATION_ENTRIES_MAX_LIMIT, U64_MAX

# -- Kinds of values ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What an option accepts: `parse` raises ValueError or KeyError for a text that is not `accepts`."""

    metavar: str
    accepts: str
    toml_types: tuple[type, ...]
    parse: Callable[[str], object]


def _integer(metavar: str, minimum: int = 0, maximum: int | None = None) -> Kind:
    def parse(text: str) -> int:
        # Not int(text) alone: that also takes "1_000", " 7 " and digits of other scripts.
        if not (text.isascii() and text.isdecimal()):
            raise ValueError
        value = int(text)
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError
        return value

    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    return Kind(metavar, f"a whole number {bounds}", (int,), parse)


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def _host(text: str) -> str:
    if not text or any(character.isspace() for character in text):
        raise ValueError
    return text


def _non_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


BOOLEAN: Final = Kind("true|false", "true or false", (bool,), {"true": True, "false": False}.__getitem__)
ROLE: Final = Kind("master|slave", "master or slave", (str,), {r: r for r in ("master", "slave")}.__getitem__)
PORT: Final = _integer("PORT", 0, 65535)
REMOTE_PORT: Final = _integer("PORT", 1, 65535)
COUNT: Final = _integer("COUNT")
COUNT_FROM_1: Final = _integer("COUNT", 1)
ENTRIES: Final = _integer("COUNT", 1, REPLICATION_ENTRIES_MAX_LIMIT)
AMOUNT: Final = _integer("VALUE", 0, U64_MAX)
BYTES: Final = _integer("BYTES")
BYTES_FROM_1: Final = _integer("BYTES", 1)
MILLISECONDS: Final = _integer("MS")
MILLISECONDS_FROM_1: Final = _integer("MS", 1)
MICROSECONDS: Final = _integer("US")
WHOLE_SECONDS: Final = _integer("SECONDS")
SECONDS: Final = Kind("SECONDS", "a number of seconds of at least 0", (int, float), _seconds)
HOST: Final = Kind("HOST", "a host name or address", (str,), _host)
PATH: Final = Kind("PATH", "a path", (str,), lambda text: Path(_non_empty(text)))
TOKEN: Final = Kind("TOKEN", "a token of at least one character", (str,), _non_empty)


# -- The table ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: `name` as in `--name` and in the TOML file, `field` as in `Config`, `env` its variable.

    `heading` is set on the first option of each group in the help text.
    """

    name: str
    field: str
    env: str
    kind: Kind
    default: object
    help: str
    short: str
    heading: str

    @property
    def is_secret(self) -> bool:
        """Whether its value may never be shown."""
        return self.kind is TOKEN


def _option(kind: Kind, default: object, text: str, **more: str) -> Any:
    """Declares a field of `Config`. `more` may hold name, env, short and heading of the `Option`."""
    return field(default=default, repr=kind is not TOKEN, metadata={"kind": kind, "help": text, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, checked. `Config()` is all defaults; `load` reads one from the outside world.

    `sources` says where each option's value came from, by option name: default, file, environment or flag.
    """

    bind: str = _option(
        HOST, "0.0.0.0", "address to listen on", env="KARMA_HOST", short="b", heading="Network"
    )
    port: int = _option(PORT, 8080, "TCP port; 0 picks a free one", short="p")
    unix_socket: Path | None = _option(PATH, None, "also listen on this Unix socket")
    http_port: int = _option(
        PORT, 0, "HTTP port for /metrics, /healthz and /readyz, on the same address; 0 is off"
    )
    nodelay: bool = _option(
        BOOLEAN, True, "set TCP_NODELAY on connections", env="KARMA_TCP_NODELAY", short="n"
    )
    read_timeout_seconds: float = _option(
        SECONDS, 5.0, "close a connection that sends nothing so long; 0 is never", name="read-timeout"
    )
    write_timeout_seconds: float = _option(
        SECONDS, 5.0, "close a connection that takes no reply so long; 0 is never", name="write-timeout"
    )
    tls_cert: Path | None = _option(PATH, None, "certificate chain (PEM): serve TLS on the TCP port")
    tls_key: Path | None = _option(PATH, None, "private key (PEM) of the certificate")
    tls_ca: Path | None = _option(PATH, None, "authority (PEM) whose client certificates are required")

    auth_token: str | None = _option(
        TOKEN, None, "token for all ops; with an admin token, for all but admin ops", heading="Access"
    )
    read_auth_token: str | None = _option(TOKEN, None, "token that allows reads only")
    admin_auth_token: str | None = _option(TOKEN, None, "when set, admin ops need this token")
    protected_mode: bool = _option(
        BOOLEAN, True, "with no token and no bind given, serve loopback peers only"
    )
    legacy_protocol: bool = _option(BOOLEAN, False, "also take requests of the first protocol")
    strict_fields: bool = _option(
        BOOLEAN, False, "refuse requests with fields that their operation does not have"
    )

    directory: Path = _option(
        PATH, Path(), "where all data lives", env="KARMA_DUMP_DIR", short="d", heading="Data directory"
    )
    restore: bool = _option(BOOLEAN, True, "load snapshots and replay the log on start", short="r")
    discard_data: bool = _option(
        BOOLEAN, False, "let --wal=false or --restore=false start on a directory that has data"
    )
    dump_retention_per_tree: int = _option(COUNT_FROM_1, 5, "snapshots to keep of each series")
    snapshot_interval_seconds: int = _option(WHOLE_SECONDS, 0, "snapshot all this often; 0 is never")
    snapshot_wal_bytes: int = _option(BYTES, 0, "snapshot all when the log grew by this; 0 is never")

    wal: bool = _option(
        BOOLEAN, True, "log every write before it is acknowledged", short="w", heading="Write-ahead log"
    )
    wal_fsync: bool = _option(BOOLEAN, True, "sync the log to disk before a write is acknowledged")
    wal_segment_bytes: int = _option(BYTES, 64 << 20, "start a new segment at this size; 0 is never")
    wal_batch_size: int = _option(COUNT_FROM_1, 1024, "most entries in one group commit")
    wal_batch_wait_us: int = _option(
        MICROSECONDS, 0, "let a group wait this long for more", env="KARMA_WAL_BATCH_WAIT_MICROSECONDS"
    )
    wal_keep_bytes: int = _option(BYTES, 256 << 20, "log to keep for known slaves after a snapshot")

    max_request_bytes: int = _option(BYTES_FROM_1, 4096, "longest request line", heading="Limits")
    max_response_bytes: int = _option(BYTES, 1 << 20, "longest response; 0 is max-client-buffer-bytes")
    query_timeout_ms: int = _option(MILLISECONDS, 1000, "stop a large read after so much work; 0 is never")
    max_value: int = _option(AMOUNT, 0, "refuse writes and batch items with a larger value; 0 is no limit")
    max_clients: int = _option(COUNT_FROM_1, 10_000, "most open connections")
    max_client_buffer_bytes: int = _option(BYTES_FROM_1, 16 << 20, "most bytes buffered for a connection")
    idempotency_max_records: int = _option(COUNT_FROM_1, 1_000_000, "idempotency records to remember")
    idempotency_max_age_seconds: int = _option(
        WHOLE_SECONDS, 604_800, "forget an idempotency record after so long; 0 is never"
    )

    role: str = _option(
        ROLE, "master", "role of this node; a role changed at run time wins", heading="Replication"
    )
    force_role: bool = _option(
        BOOLEAN, False, "let role and source given here win over those changed at run time"
    )
    replication_source_host: str | None = _option(HOST, None, "master that this slave follows")
    replication_source_port: int = _option(REMOTE_PORT, 8080, "port of that master")
    replication_token: str | None = _option(TOKEN, None, "token this slave sends to its master")
    replication_poll_interval_ms: int = _option(
        MILLISECONDS_FROM_1, 1000, "how often a slave polls when there is nothing new"
    )
    replication_batch_size: int = _option(ENTRIES, 1000, "most log entries that a slave fetches at once")
    sync_replicas: int = _option(COUNT, 0, "slaves that must hold a write before its reply")
    sync_timeout_ms: int = _option(
        MILLISECONDS_FROM_1, 1000, "wait this long for them, then reply and report the node degraded"
    )
    ready_max_lag_entries: int = _option(
        COUNT, 10_000, "a slave further behind than this answers 503 on /readyz"
    )

    shutdown_timeout_seconds: float = _option(
        SECONDS, 5.0, "let clients finish this long", name="shutdown-timeout", heading="Operation"
    )
    log: bool = _option(BOOLEAN, True, "write logs, one JSON object a line")
    config: Path | None = _option(PATH, None, "TOML file whose keys are these option names")

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def secret_files(self) -> tuple[Path, ...]:
        """The files that hold a secret, of those that are named."""
        has_token = any(option.is_secret and self.sources.get(option.name) == "file" for option in OPTIONS)
        return tuple(filter(None, (self.tls_key, self.config if has_token else None)))

    @property
    def bind_explicit(self) -> bool:
        """Whether somebody chose the address to listen on; protected mode guards only the default."""
        return self.sources.get("bind", "default") != "default"

    @property
    def largest_response(self) -> tuple[int, str]:
        """The most bytes of one response, and the option that bounds them."""
        if 0 < self.max_response_bytes <= self.max_client_buffer_bytes:
            return self.max_response_bytes, "max-response-bytes"
        return self.max_client_buffer_bytes, "max-client-buffer-bytes"


OPTIONS: Final = tuple(
    Option(
        name=declared.metadata.get("name", declared.name.replace("_", "-")),
        field=declared.name,
        env=declared.metadata.get("env", f"KARMA_{declared.name.upper()}"),
        kind=declared.metadata["kind"],
        default=declared.default,
        help=declared.metadata["help"],
        short=declared.metadata.get("short", ""),
        heading=declared.metadata.get("heading", ""),
    )
    for declared in fields(Config)
    if declared.metadata
)
_BY_NAME: Final = {option.name: option for option in OPTIONS}
_BY_SHORT: Final = {option.short: option for option in OPTIONS if option.short}

# -- The command line -----------------------------------------------------------------------------------


class Action(Enum):
    """What a command line asks for. Of several the one declared first here wins."""

    HELP = "help"
    VERSION = "version"
    CHECK_CONFIG = "check-config"
    RUN = "run"


_ACTION_OF_WORD: Final = {
    "-h": Action.HELP,
    "--help": Action.HELP,
    "--version": Action.VERSION,
    "--check-config": Action.CHECK_CONFIG,
}


def action_of(argv: Sequence[str]) -> Action:
    """What `argv` (without the program's name) asks for. Raises ConfigError when it cannot be read."""
    _, words = _read_flags(argv)
    requested = {_ACTION_OF_WORD[word] for word in words}
    return next((action for action in Action if action in requested), Action.RUN)


def _read_flags(argv: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Option names with their texts, and the words that ask for an action."""
    texts: dict[str, str] = {}
    words: set[str] = set()
    arguments = deque(enumerate(argv, start=1))
    while arguments:
        position, argument = arguments.popleft()
        if argument in _ACTION_OF_WORD:
            words.add(argument)
            continue
        option, text = _split_flag(argument, position)
        if text is None:
            # Only a word without a dash is a value, so that a forgotten one never swallows the next option.
            if not arguments or arguments[0][1].startswith("-"):
                raise ConfigError(f"--{option.name}: needs a value: --{option.name}={_sample(option)}")
            _, text = arguments.popleft()
        texts[option.name] = text
    return texts, words


def _split_flag(argument: str, position: int) -> tuple[Option, str | None]:
    """The option that an argument names, and its text if it follows in the same argument."""
    if argument.startswith("--"):
        name, equals, text = argument[2:].partition("=")
        option = _BY_NAME.get(name)
        if option is None:
            raise ConfigError(f"{'--' + name!r}: there is no such option{_suggestion(name, '--')}")
        return option, text if equals else None
    option = _BY_SHORT.get(argument[1:2]) if argument.startswith("-") else None
    if option is None:
        # The word itself stays out of the message: it may be the second half of an unquoted token.
        raise ConfigError(f"argument {position} is neither an option nor the value of one: see karma --help")
    text = argument[2:]
    return option, text.removeprefix("=") if text else None


def _sample(option: Option) -> str:
    return option.kind.metavar if option.default is None or option.kind is BOOLEAN else str(option.default)


def _suggestion(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name.replace("_", "-"), _BY_NAME, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "; see karma --help"


# -- Variables that are not ours ------------------------------------------------------------------------

_PREFIX: Final = "KARMA_"
_LIKENESS: Final = 0.85
"""How like one of ours a name is that was meant to be it."""
_OF_KUBERNETES: Final = re.compile(
    r"KARMA_(?:\w*_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT(?:_\d+_(?:TCP|UDP)\w*)?)"
)
"""What Kubernetes puts into each container when a service is called karma, or karma-something."""


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like ours and has no effect.

    Raises ConfigError for one that is nearly ours: a token that is not read would leave a server open.
    """
    meant = {f"{_PREFIX}{option.name.replace('-', '_').upper()}": option.env for option in OPTIONS}
    meant |= {option.env: option.env for option in OPTIONS}
    doubts = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or meant.get(name) == name or _OF_KUBERNETES.fullmatch(name):
            continue
        close = difflib.get_close_matches(name, meant, n=1, cutoff=_LIKENESS)
        if close:
            raise ConfigError(f"{name}: there is no such variable; did you mean {meant[close[0]]}?")
        doubts.append(f"{name} is not a variable of karma and has no effect; see karma --help")
    return doubts


# -- Loading --------------------------------------------------------------------------------------------


def load(argv: Sequence[str], environ: Mapping[str, str], read_file: Callable[[Path], bytes]) -> Config:
    """The settings that a command line, an environment and the file they name give together.

    `argv` comes without the program's name. `read_file` is called when a file is named; it may raise OSError.
    Raises ConfigError: one line that names the option, where the value came from, the value unless it is
    secret, and what is accepted.
    """
    flags, _ = _read_flags(argv)
    unknown_variables(environ)
    variables = {
        option.name: environ[option.env]
        for option in OPTIONS
        if environ.get(option.env) or (option.is_secret and option.env in environ)
    }
    path_text = flags.get("config", variables.get("config"))
    keys = _read_toml(Path(path_text), read_file) if path_text else {}

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        if option.name in flags:
            source, value = "flag", _parse(option, flags[option.name], "")
        elif option.name in variables:
            source, value = "environment", _parse(option, variables[option.name], f" (from {option.env})")
        elif option.name in keys:
            source, value = "file", _parse_toml(option, keys[option.name], f" (from {path_text!r})")
        else:
            source, value = "default", option.default
        values[option.field] = value
        sources[option.name] = source
    config = Config(**values, sources=sources)
    _check_together(config)
    return config


def _parse(option: Option, text: str, origin: str) -> object:
    try:
        return option.kind.parse(text)
    except (ValueError, KeyError):
        raise _bad_value(option, text, origin) from None


def _parse_toml(option: Option, value: object, origin: str) -> object:
    # `type` instead of isinstance: true is an int to Python, but no port to anybody.
    if type(value) not in option.kind.toml_types:
        raise _bad_value(option, value, origin)
    return _parse(option, str(value).lower() if isinstance(value, bool) else str(value), origin)


def _bad_value(option: Option, value: object, origin: str) -> ConfigError:
    shown = "the value" if option.is_secret else repr(value)
    return ConfigError(f"--{option.name}{origin}: {shown} is not {option.kind.accepts}")


def _read_toml(path: Path, read_file: Callable[[Path], bytes]) -> dict[str, object]:
    try:
        keys = tomllib.loads(read_file(path).decode())
    except OSError as error:
        raise ConfigError(f"--config: cannot read {str(path)!r}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {str(path)!r} is not a TOML file: {error}") from None
    for key in keys:
        if key == "config" or key not in _BY_NAME:
            raise ConfigError(f"--config: {str(path)!r} has the unknown key {key!r}{_suggestion(key)}")
    return keys


def _check_together(config: Config) -> None:
    """Raises ConfigError when settings that are fine alone contradict each other."""
    if config.replication_source_host is not None and config.role != "slave":
        raise ConfigError("--replication-source-host: needs --role=slave, since a master follows nobody")
    if (config.tls_cert is None) != (config.tls_key is None):
        given, missing = ("tls-cert", "tls-key") if config.tls_cert else ("tls-key", "tls-cert")
        raise ConfigError(f"--{given}: needs --{missing} too")
    if config.tls_ca is not None and config.tls_cert is None:
        raise ConfigError("--tls-ca: needs --tls-cert, since client certificates exist only in TLS")
    if config.http_port != 0 and config.http_port == config.port:
        raise ConfigError(f"--http-port: {config.http_port} is also --port; choose another for one of them")
    if config.sync_replicas > 0 and not config.wal:
        raise ConfigError("--sync-replicas: needs --wal=true, since slaves acknowledge entries of the log")


# -- Showing --------------------------------------------------------------------------------------------

_HELP_WIDTH: Final = 100
_HELP_COLUMN: Final = 44


def help_text() -> str:
    """The text of `--help`: every option with its variable and default, at most 100 columns wide."""
    lines = [
        "Usage: karma [--OPTION=VALUE ...]         start the server",
        "       karma check|repair ...             work on the directory of a server that is not running",
        "",
        "An option wins over its environment variable, which stands in brackets with the default, and that",
        "wins over the file named by --config.",
        "",
        "  -h, --help                                show this text",
        "      --version                             show the version",
        "      --check-config                        show the settings in force and where they came from",
    ]
    for option in OPTIONS:
        if option.heading:
            lines += ["", f"{option.heading}:"]
        short = f"-{option.short}," if option.short else ""
        head = f"  {short:3} --{option.name}={option.kind.metavar}"
        lines += textwrap.wrap(
            f"{option.help} [{option.env}{_default_text(option.default)}]",
            _HELP_WIDTH,
            initial_indent=head.ljust(_HELP_COLUMN),
            subsequent_indent=" " * _HELP_COLUMN,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _default_text(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return f"={default}".lower()
        case float():
            return f"={default:g}"
        case _:
            return f"={default}"


def describe(config: Config) -> dict[str, dict[str, object]]:
    """Option name → `{value, source}`, ready for JSON, for `--check-config`. A token shows as `***`."""
    shown: dict[str, dict[str, object]] = {}
    for option in OPTIONS:
        value = getattr(config, option.field)
        if isinstance(value, Path):
            value = str(value)
        elif option.is_secret and value is not None:
            value = "***"
        shown[option.name] = {"value": value, "source": config.sources.get(option.name, "default")}
    return shown
