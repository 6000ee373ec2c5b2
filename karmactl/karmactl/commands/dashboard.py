"""tui and record: hand the chosen nodes, token and all, to karma_tui."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from karma_client.errors import InvalidArgumentError
from karmactl.commands import playbooks
from karmactl.contexts import cache_path, config_path, state_path
from karmactl.diagnostics import CtlError, Exit, usage
from karmactl.output import Row
from karmactl.run import Run, client_options
from karmactl.settings import Settings, token

if TYPE_CHECKING:
    from karma_tui.target import Target


def tui(
    run: Run, place: tuple[str, ...], interval: float, record: str | None, replay: str | None, theme: str
) -> None:
    """Run the dashboard until somebody leaves it."""
    if record and replay:
        raise usage("--record and --replay exclude each other", "leave one of them out")
    if not (run.stdin.isatty() and run.talk.is_terminal):
        raise CtlError(
            Exit.REFUSED,
            "the dashboard needs a terminal",
            fault="command line",
            advice="`karmactl topology` and `karmactl replication status` print; `karmactl record` records",
        )
    try:
        from karma_tui.app import KarmaApp  # noqa: PLC0415  400 ms that no other command may pay
    except ModuleNotFoundError as error:
        raise CtlError(
            Exit.USAGE,
            f"the dashboard needs {error.name}, which is not installed",
            fault="configuration",
            advice="pip install 'karma[tui]'",
        ) from error
    from karma_tui.recording import Playback, Recorder, RecordingError  # noqa: PLC0415
    from karma_tui.target import Target  # noqa: PLC0415

    with ExitStack() as stack:
        try:
            playback = Playback(Path(replay)) if replay else None
            recorder = stack.enter_context(Recorder(Path(record))) if record else None
        except RecordingError as error:
            raise _recording(error) from error
        if playback is not None:
            chosen = Target(playback.nodes, f"recording {Path(str(replay)).name}", tick_seconds=interval)
        else:
            chosen = target(run, interval)
        app = KarmaApp(
            chosen, recorder=recorder, playback=playback, first=" ".join(place) or "fleet", theme=theme
        )
        app.run()
    if app.player.run:
        playbooks.say_next(run, app.player.run)
    if app.return_code:
        raise CtlError(
            Exit.INTERNAL, "the dashboard ended with an error, told above", fault="karmactl",
            advice="please report it with the command that led to it",
        )  # fmt: skip
    if recorder is not None:
        run.talk.say(f"recorded in {recorder.path}; `karmactl tui --replay {recorder.path}` shows it")


def record(run: Run, to: str, interval: float, for_: float | None, rotate: float | None) -> Iterator[Row]:
    """Record until somebody ends it."""
    from karma_tui import headless  # noqa: PLC0415  asyncio, which other commands do without
    from karma_tui.headless import Kept  # noqa: PLC0415
    from karma_tui.recording import RecordingError  # noqa: PLC0415

    path = Path(to)
    (path if rotate else path.parent).mkdir(parents=True, exist_ok=True)
    files: list[Kept] = []
    run.talk.say(f"recording {', '.join(run.settings.nodes)} until Ctrl-C")

    def done(kept: Kept) -> None:
        files.append(kept)
        run.talk.say(f"{kept.file}: {kept.answers:,} answers")

    try:
        headless.record(target(run, interval), path, done, for_seconds=for_, rotate_seconds=rotate)
    except RecordingError as error:
        raise _recording(error) from error
    for file, answers, seconds in files:
        yield {"file": str(file), "answers": answers, "seconds": round(seconds, 3)}


def target(run: Run, interval_seconds: float) -> Target:
    """Return what the dashboard is pointed at."""
    from karma_tui.target import Target  # noqa: PLC0415

    settings = run.settings
    context = settings.context
    is_whole = context is not None and settings.nodes == context.addresses
    options = client_options(settings, run.environ)
    if options["token"]:
        options["token"] = _token(settings, run.environ)
    words: tuple[str, ...] = ("--context", context.name) if context is not None else ()
    if not is_whole:
        words += tuple(word for node in settings.nodes for word in ("--node", node))
    return Target(
        settings.nodes,
        context.name if context is not None else "",
        is_production=settings.production is not None,
        is_read_only=bool(settings["read_only"]),
        tick_seconds=interval_seconds,
        options=words,
        playbooks_path=config_path(run.environ).parent / "playbooks",
        events_path=state_path(run.environ) / "events",
        desk=replace(playbooks.desk(run), client_options=options),
        cache_path=cache_path(run.environ),
        sql_history_path=state_path(run.environ) / "sql_history",
        client_options=options,
    )


def _token(settings: Settings, environ: Mapping[str, str]) -> Callable[[], str]:
    """Return what reads the token: clients ask again when it was refused, and a dashboard lives for days."""

    def read() -> str:
        try:
            found, _ = token(settings, environ)
        except CtlError as error:
            # A poll that fails for now, told on the screen: the file may be there again at the next one.
            raise InvalidArgumentError(error.message) from error
        return found or ""

    return read


def _recording(error: Exception) -> CtlError:
    return CtlError(Exit.USAGE, str(error), fault="command line")
