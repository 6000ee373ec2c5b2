"""One command while it runs: its settings, its connections, its guards. What every handler gets first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TextIO, TypeVar

from karma.ops import BY_NAME
from karmactl import settings as settings_
from karmactl.diagnostics import CtlError, Exit, Talk, usage
from karmactl.output import Output, Shown
from karmactl.settings import Settings
from karmactl.table.entries import Command, changes

if TYPE_CHECKING:
    from karma_client import Client

T = TypeVar("T")
Target = Literal["master", "any"]


SLOW_SECONDS = 300.0
"""For what takes longer the more data there is, such as a snapshot, unless --timeout says otherwise."""


SECRET = frozenset({"token", "source_token"})
"""Fields that are never shown."""


class DryRun(Exception):  # noqa: N818  an answer, not an error
    """--dry-run met a request that would change something; it was not sent."""

    def __init__(self, op: str, fields: Mapping[str, Any], nodes: tuple[str, ...]) -> None:
        super().__init__(op)
        self.op = op
        self.fields = fields
        self.nodes = nodes

    def shown(self) -> Shown:
        """Return what would have been sent, as data."""
        shown = {name: "********" if name in SECRET else value for name, value in self.fields.items()}
        fields = json.dumps(shown, ensure_ascii=False)
        text = f"dry run: would send {self.op} {fields} to {' or '.join(self.nodes)}; nothing was changed"
        data = {"dry_run": True, "op": self.op, "fields": shown, "nodes": list(self.nodes)}
        return Shown(data, lambda _: [text])


class Run:
    """A command under way. `exit_code` is what the process ends with when no error does."""

    def __init__(
        self,
        command: Command,
        settings: Settings,
        flags: Mapping[str, Any],
        environ: Mapping[str, str],
        output: Output,
        talk: Talk,
        stdin: TextIO,
        nested: Callable[[Sequence[str]], int],
    ) -> None:
        self.command = command
        self.settings = settings
        self.flags = flags
        self.environ = environ
        self.output = output
        self.talk = talk
        self.stdin = stdin
        self.nested = nested
        """Carries out another command line, as `cli.run` does; returns its exit code."""
        self.exit_code: int = Exit.OK
        self._clients: dict[tuple[Target, tuple[str, ...]], Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (target, nodes), client in self._clients.items():
            client.close()
            self._say_where(target, nodes, client.last_node)

    def _say_where(self, target: Target, nodes: tuple[str, ...], node: str | None) -> None:
        """Say which node requests went to: with --verbose, and when it is not one of those given."""
        if node is None:
            return
        if node not in nodes:
            self.talk.say(f"sent to {node}, which {' or '.join(nodes)} named as the master")
        elif self.settings["verbose"]:
            self.talk.say(f"sent to {node}" + (", the master" if target == "master" else ""))

    @property
    def is_dry(self) -> bool:
        """Whether nothing may be changed because of --dry-run."""
        return bool(self.settings["dry_run"])

    # -- Requests ------------------------------------------------------------------------------

    def ask(self, op: str, **fields: Any) -> Any:
        """Return the response of a reading operation; any node may answer. Raises as `send`."""
        self.guard(op, fields)
        return self.client().call_paged(op, **fields)

    def send(self, op: str, **fields: Any) -> Any:
        """Return the response of a changing operation: from the master, or for those of every role, the one
        node.

        Raises CtlError when --read-only forbids it, DryRun with --dry-run, KarmaError.
        """
        found = BY_NAME.get(op)
        is_for_master = found is not None and found.access == "W"
        nodes = self.settings.nodes if is_for_master else (self.one_node(),)
        target: Target = "master" if is_for_master else "any"
        self.guard(op, fields, nodes, target)
        return self.client(target, nodes).call(op, **fields)

    def at(self, node: str, op: str, **fields: Any) -> Any:
        """Return the response of an operation from one node. Raises as `send`."""
        self.guard(op, fields, (node,))
        return self.client("any", (node,)).call_paged(op, **fields)

    def each(self, work: Callable[[str], T]) -> list[T]:
        """Return `work(node)` of every node in order; in threads, so that a dead node delays no other.

        Raises what `work` raised for the first node that it raised for.
        """
        nodes = self.settings.nodes
        results: dict[str, T] = {}
        problems: dict[str, Exception] = {}

        def note(node: str) -> None:
            try:
                results[node] = work(node)
            except Exception as problem:  # noqa: BLE001  raised again below, where somebody can handle it
                problems[node] = problem

        threads = [Thread(target=note, args=(node,), daemon=True) for node in nodes[1:]]
        for thread in threads:
            thread.start()
        note(nodes[0])
        for thread in threads:
            thread.join()
        for node in nodes:
            if node in problems:
                raise problems[node]
        return [results[node] for node in nodes]

    def client(self, target: Target = "any", nodes: tuple[str, ...] = ()) -> Client:
        """Return the client of the command's nodes, or of those given. `ask` and `send` are guarded."""
        nodes = nodes or self.settings.nodes
        known = self._clients.get((target, nodes))
        if known is None:
            known = connection(self.settings, self.environ, nodes=nodes, target=target)
            self._clients[target, nodes] = known
        return known

    def one_node(self) -> str:
        """Return the only node. Raises CtlError when there are several: this must not be left to chance."""
        if len(self.settings.nodes) > 1:
            raise usage(
                f"{self.command.name} acts on one node, and there are {len(self.settings.nodes)}",
                f"name it: --node {self.settings.nodes[0]}, or another of {', '.join(self.settings.nodes)}",
            )
        return self.settings.nodes[0]

    # -- Guards --------------------------------------------------------------------------------

    def check_allowed(self) -> None:
        """Refuse options that the command cannot honour, and writes with --read-only. Raises CtlError."""
        command, chosen = self.command, self.settings
        if command.effect == "write":
            self._refuse_if_read_only(f"{command.name} writes")
        if chosen["watch"] and not command.can_watch:
            raise usage(f"{command.name} cannot be repeated with --watch", "leave --watch out")
        if chosen["wait_until"] and not command.can_wait:
            raise usage(
                f"{command.name} cannot wait",
                "use --wait-until with health, topology or replication status, then this command",
            )

    def guard(
        self, op: str, fields: Mapping[str, Any], nodes: tuple[str, ...] = (), target: Target = "any"
    ) -> None:
        """Stop an operation that changes something: raises CtlError with --read-only, DryRun with --dry-run.

        `ask`, `send` and `at` call it; whoever uses a client of its own calls it first.
        """
        if changes(op):
            self._refuse_if_read_only(f"{op} writes")
            if self.is_dry:
                raise DryRun(op, fields, self._receivers(nodes or self.settings.nodes, target))

    def _receivers(self, nodes: tuple[str, ...], target: Target) -> tuple[str, ...]:
        """Return where a request would go: the master, where the nodes can tell which one that is."""
        if target != "master":
            return nodes
        from karma_client import errors  # noqa: PLC0415  local commands need no client

        try:
            return (self.client(target, nodes).find_master(),)
        except (errors.NoMasterError, errors.SplitBrainError):
            # So would the command itself end.
            raise
        except errors.KarmaError:
            return nodes

    def _refuse_if_read_only(self, what: str) -> None:
        setting = self.settings.values["read_only"]
        if setting.value:
            raise CtlError(
                Exit.REFUSED,
                f"{what}, which {setting.source} forbids; nothing was sent",
                fault="command line" if setting.source.startswith("--") else "configuration",
                advice=f"leave it to reading commands, or run without {setting.source}",
            )

    def confirm(self, act: str, *, typed: str = "") -> None:
        """Ask before something destructive; `act` completes "this will …".

        With `typed` (data goes away) that name must be typed, in production the context's name in any case:
        --confirm NAME answers, --yes never does. Otherwise a plain yes does. Raises CtlError when declined,
        or when there is no terminal to ask on. With --dry-run nothing is asked, because nothing will be done.
        """
        if self.is_dry:
            return
        production = self.settings.production
        name = production.name if production else typed
        if name:
            self._confirm_typed(act, name)
        elif not self.settings["yes"]:
            self._need_terminal(act, "--yes")
            self.talk.prompt(f"This will {act}. Go on? [y/N] ")
            if self.stdin.readline().strip().lower() not in {"y", "yes"}:
                self._decline()

    def _confirm_typed(self, act: str, name: str) -> None:
        production = self.settings.production
        given = self.settings["confirm"]
        if given is None:
            self._need_terminal(act, f"--confirm {name}")
            place = ""
            if production:
                place = self.talk.styled(f"[PRODUCTION: {production.name}]", "97;41") + " "
            self.talk.prompt(f"{place}This will {act}.\nType {self.talk.styled(name, '1')} to go on: ")
            if self.stdin.readline().strip() != name:
                self._decline()
        elif given != name:
            meant = "the production context" if production else "what data goes away"
            raise CtlError(
                Exit.REFUSED,
                f'--confirm {given} does not name {meant}, "{name}"; nothing was done',
                fault="command line",
                advice=f"look again at what this will do ({act}); if it is right: --confirm {name}",
            )

    def _need_terminal(self, act: str, option: str) -> None:
        if not (self.stdin.isatty() and self.talk.is_terminal):
            raise CtlError(
                Exit.REFUSED,
                f"this will {act}, and there is no terminal to ask on; nothing was done",
                fault="command line",
                advice=f"if that is meant, add {option}",
            )

    def _decline(self) -> NoReturn:
        raise CtlError(Exit.REFUSED, "declined; nothing was done", fault="you declined")


def connection(
    settings: Settings,
    environ: Mapping[str, str],
    timeout_seconds: float | None = None,
    *,
    nodes: tuple[str, ...] = (),
    target: Target = "any",
) -> Client:
    """Return a client as the settings say; nothing is sent yet. Raises CtlError for an unreadable token."""
    # Imported here, because local commands need no client.
    from karma_client import connect  # noqa: PLC0415

    # A person waits: one more try after a failover, no hammering until the time is up.
    options = client_options(settings, environ, timeout_seconds)
    return connect(nodes or settings.nodes, target=target, max_attempts=2, **options)


def client_options(
    settings: Settings, environ: Mapping[str, str], timeout_seconds: float | None = None
) -> dict[str, Any]:
    """Return token, TLS and time limits as arguments of `connect`. Raises CtlError (no token)."""
    from karma_client import Tls  # noqa: PLC0415

    token, _ = settings_.token(settings, environ)
    ca, certificate, key = settings["tls_ca"], settings["tls_cert"], settings["tls_key"]
    limit_seconds = settings.request_seconds if timeout_seconds is None else timeout_seconds
    is_limited = timeout_seconds is not None or settings["timeout"] is not None
    return {
        "token": token,
        "tls": Tls(ca, certificate, key) if settings["tls"] or ca or certificate else False,
        "timeout_seconds": limit_seconds,
        "slow_timeout_seconds": limit_seconds if is_limited else SLOW_SECONDS,
        "connect_timeout_seconds": min(limit_seconds, 2.0),
        "follow_hints": bool(settings["follow_hints"]),
    }
