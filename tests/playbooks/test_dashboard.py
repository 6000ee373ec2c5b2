"""Playbooks from the dashboard, over real nodes and hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faults.proxy import Proxy
from harness import until
from playbooks.fleet import Fleet, approved
from stage import Show

from karma_client import ReadOnlyError
from karma_playbooks.control import Request, sitting
from karma_playbooks.errors import PlaybookError
from karma_playbooks.inventory import Desk
from karma_playbooks.library import load_book
from karma_tui.app import KarmaApp
from karma_tui.screens.runs import RunPage
from karma_tui.target import Target

KEYS = {"Enter": "enter", "Esc": "escape", "/": "slash", ":": "colon"}
ASKING = """\
playbook: careful
title: Fences a node, and asks before it goes on.
loses: nothing
params:
  node: {kind: node, help: the node}
steps:
  - id: fence
    title: It refuses writes.
    targets: {ref: params.node}
    action: karma.fence
    args: {epoch: {ref: cluster.next_epoch}, reason: "${run.reason}"}
    verify: [{action: karma.expect, args: {is: {fenced: true}}}]
    undo:
      - {action: karma.unfence, args: {epoch: {ref: cluster.next_epoch}}}
      - {action: karma.expect, args: {is: {fenced: false}}}
  - id: tell
    title: Its host says something.
    targets: {ref: params.node}
    action: ssh.exec
    args: {argv: [echo, the host says hello]}
    verify: [{action: ssh.check, args: {argv: ["true"]}}]
    undo: [{action: ssh.exec, args: {argv: [echo, never mind]}}]
  - {id: shout, title: Others know., action: notify, args: {message: hello, argv: [echo, told]}}
  - {id: ask, title: Somebody looked., action: confirm, args: {message: "Does the graph look right?"}}
"""


def desk(fleet: Fleet, **options: Any) -> Desk:
    """The operator's machine."""
    tables = tuple(
        {name: value for name, value in entry._asdict().items() if value not in ("", ())}
        for entry in fleet.entries().values()
    )
    limits = {"timeout_seconds": 3.0}
    return Desk("prod", "ada@desk", tables, fleet.state, client_options=limits, **options)


@asynccontextmanager
async def watching(fleet: Fleet, **options: Any) -> AsyncIterator[Show]:
    more = {"is_production": options.get("is_production", False)}
    target = Target(
        tuple(node.address for node in fleet.nodes.values()),
        "prod",
        tick_seconds=0.2,
        options=("--context", "prod"),
        playbooks_path=fleet.folder / "books",
        events_path=fleet.state / "events",
        desk=desk(fleet, **more),
        **options,
    )
    app = KarmaApp(target, folder=fleet.folder)
    async with app.run_test(size=(80, 24)) as pilot:
        show = Show(app, pilot, None)  # type: ignore[arg-type]
        await show.see("3/3 nodes")
        yield show


async def hint(show: Show, what: str) -> None:
    """Press the key of which the last line says that it does this."""
    await show.until(lambda: f" {what}" in show.frame().splitlines()[-1])
    key = show.frame().splitlines()[-1].partition(f" {what}")[0].split()[-1]
    await show.press(KEYS.get(key, key))


async def apart(work: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)


def go(fleet: Fleet, steps: Callable[[Show], Awaitable[None]], **options: Any) -> None:
    async def work() -> None:
        async with watching(fleet, **options) as show:
            await steps(show)

    asyncio.run(work())


def test_a_newcomer_finds_the_laggiest_follower_its_graph_and_rebuilds_it(fleet: Fleet) -> None:
    """From the hints in the last line alone, on the smallest terminal."""
    first, last = fleet.nodes["a"], fleet.nodes["c"]
    with Proxy() as proxy:
        link = proxy.link(lambda: first.port)
        last.ask("replication.follow", host="127.0.0.1", port=link.port)
        until(lambda: last.status()["replication_state"] == "following")
        link.set("hole")
        with first.server.connect() as connection:
            for number in range(300):
                connection.ask("counter.increment", series="hits", key=number)

        async def steps(show: Show) -> None:
            await show.until(lambda: (show.app.fleet.node(last.address).newest.lag_entries or 0) >= 300)
            await hint(show, "go to the laggiest follower")
            await show.see(f"node {last.address}", "lag in entries")
            await hint(show, "playbooks")
            await show.see("rebuild-follower")
            await hint(show, "filter")
            await show.type("rebuild")
            await show.press("enter")
            await hint(show, "plan it")
            # Its node is filled in; why, nobody can guess.
            await show.see("plan rebuild-follower", "must be given")
            assert show.app.screen.query_one("#field-node").value == "c"  # type: ignore[attr-defined]
            await show.type("it lags")
            await show.press("enter")
            await show.see("loses nothing", "point of no return: rebuild", "; hash ", "NO UNDO")
            await hint(show, "run it")
            await show.see("PRODUCTION: prod", "Type prod", "--plan-hash")
            await show.type("prod")
            await show.press("enter")
            await show.until(lambda: "done" in show.frame() and not show.app.player.is_busy)
            link.set("open")

        go(fleet, steps, is_production=True)
    until(lambda: last.status()["source"] == first.address)
    until(lambda: last.status()["wal_current_lsn"] == first.status()["wal_current_lsn"])


def test_a_run_that_asks_is_left_stopped_and_resumed(fleet: Fleet) -> None:
    (fleet.folder / "books").mkdir()
    (fleet.folder / "books" / "careful.yml").write_text(ASKING)
    node = fleet.nodes["b"]

    async def steps(show: Show) -> None:
        await show.press("8")
        await show.see("careful")
        await hint(show, "filter")
        await show.type("careful")
        await show.press("enter", "enter")
        await show.type("a test")
        await show.press("enter")
        await show.see("loses nothing")
        await hint(show, "run it")
        await show.type("prod")
        await show.press("enter")
        await show.see("the run asks", "Does the graph look right?")
        # Somebody who types something else did not answer.
        await show.press("y", "enter", "escape")
        await show.see("it asks: Does the graph")
        assert node.status()["fenced_by"]
        # It goes on without its screen, which can be opened again.
        await show.press("escape", "escape")
        await hint(show, "the run under way")
        await show.see("it asks: Does the graph", "the host says hello", "told hello")
        await hint(show, "stop")
        await show.see("stop the run?", "p pauses it where it is")
        await show.press("p")
        await show.until(lambda: not show.app.player.is_busy)
        await show.see("paused", "next: karmactl playbook resume careful-")
        assert node.status()["fenced_by"]
        await show.press("escape")
        await hint(show, "earlier runs")
        await show.see("careful-", "paused", "a test")
        await hint(show, "open the run")
        await show.see("paused")
        # Meanwhile somebody tries to go on with it from elsewhere, and stops it again.
        await apart(lambda: interrupted(fleet))
        await show.until(lambda: epoch(show) == 2)
        await hint(show, "resume")
        await show.see("go on with careful-", "Type prod")
        await show.type("prod")
        await show.press("enter")
        await show.see("the run asks")
        # The dashboard asks before it leaves a run.
        await show.press("escape", "q")
        await show.see("leave the dashboard?")
        await show.press("escape")
        await hint(show, "answer")
        await show.type("yes")
        await show.press("enter")
        await show.until(lambda: not show.app.player.is_busy)
        await show.see("done")

    go(fleet, steps)
    assert node.status()["fenced_by"]
    with fleet.playbooks() as playbooks:
        (run,) = playbooks.journal.runs()
        states = [entry.data["state"] for entry in playbooks.journal.entries(run) if entry.kind == "state"]
        assert states == ["running", "paused", "running", "paused", "running", "done"]
        assert playbooks.journal.history(run).epoch == 3


def interrupted(fleet: Fleet) -> None:
    """Go on with the only run and stop it at its question, as a second Ctrl-C does with karmactl."""

    async def work() -> None:
        asked = asyncio.Event()

        async def approve(_: str) -> bool:
            asked.set()
            return await asyncio.Event().wait()

        async with sitting(
            desk(fleet), tell=fleet.told.append, say=lambda *_: None, approve=approve
        ) as playbooks:
            (run,) = playbooks.journal.runs()
            going = asyncio.create_task(playbooks.resume(run, "bob@elsewhere"))
            await asked.wait()
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going

    asyncio.run(work())


def epoch(show: Show) -> int:
    page = show.app.screen
    return page.progress.history.epoch if isinstance(page, RunPage) and page.progress else 0


def test_a_cluster_that_changed_since_the_plan_is_not_touched(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(None)

    async def steps(show: Show) -> None:
        await show.press("8")
        await show.see("rebuild-follower")
        await show.press("slash", *"reb", "enter", "enter", "shift+tab")
        # Whichever follower is filled in, c is chosen.
        await show.until(lambda: getattr(show.app.focused, "id", "") == "field-node")
        for _ in range(3):
            if show.app.screen.query_one("#field-node").value != "c":  # type: ignore[attr-defined]
                await show.press("down")
        await show.press("tab")
        await show.type("x")
        await show.press("enter")
        await show.see("loses nothing")
        await apart(lambda: fleet.play("switchover", to="b"))
        await hint(show, "run it")
        await show.type("prod")
        await show.press("enter")
        await show.see("refused", "the cluster is not as it was planned for", "nothing was done")
        await hint(show, "back")
        await hint(show, "plan again")
        await show.see('"source": "b"')

    go(fleet, steps)
    with fleet.playbooks() as playbooks:
        assert [run.partition("-")[0] for run in playbooks.journal.runs()] == ["switchover"]


def test_a_read_only_desk_runs_nothing(start_fleet: Callable[..., Fleet]) -> None:
    """Behind the dashboard's own refusal, which leaves no way here, the engine and its client refuse."""
    fleet = start_fleet(None)

    async def work() -> None:
        async with sitting(
            desk(fleet, is_read_only=True), tell=fleet.told.append, say=lambda *_: None, approve=approved
        ) as playbooks:
            book = load_book("fence", fleet.folder)
            plan = await playbooks.plan(book, {"node": "c"})
            with pytest.raises(PlaybookError, match="prod is read-only here; nothing was sent"):
                await playbooks.run(book, {"node": "c"}, plan, Request("ada", "x"))
            with pytest.raises(ReadOnlyError):
                await playbooks.world.ask("c", "replication.fence", epoch=9, reason="x")

    asyncio.run(work())
    assert fleet.nodes["c"].status()["fenced_by"] is None
