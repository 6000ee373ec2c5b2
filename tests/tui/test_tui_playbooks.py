"""Playbooks on the dashboard, letter by letter in three sizes; and runs that are refused, ask or are left."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ctl
import pytest
from harness import ROOT
from playing import FAILED, RUN, TABLES, StagePlayer, desk
from stage import NODES, Show, prod, shown

from karma_client import KarmaError
from karma_playbooks.inventory import Desk
from karma_tui.player import Player, Wish
from karma_tui.screens.plans import PlanPage
from karma_tui.target import Target

SIZES = [(80, 24), (120, 40), (200, 60)]


async def plan(show: Show) -> None:
    """Show the plan of a switchover; the keys that lead there are pressed elsewhere."""
    show.app.push_screen(PlanPage(Wish("switchover", {}, "x")))
    await show.see("point of no return: promote")


async def play(show: Show) -> None:
    """Run it as far as it asks."""
    await plan(show)
    await show.press("r")
    await show.see("Type prod")
    await show.type("prod")
    await show.press("enter")
    await show.see("the run asks")


def player(show: Show) -> StagePlayer:
    assert isinstance(show.app.player, StagePlayer)
    return show.app.player


def run(
    steps: Callable[[Show], Awaitable[None]], folder: Path, target: Target | None = None, **options: Any
) -> None:
    async def go() -> None:
        async with shown(target=target or prod(desk=desk(folder)), folder=folder, **options) as show:
            await steps(show)

    asyncio.run(go())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_screens_look_as_they_did(size: tuple[int, int], tmp_path: Path) -> None:
    async def tour(show: Show) -> None:
        async def keep(name: str, *texts: str) -> None:
            await show.see(*texts)
            await show.settle()
            ctl.compare(f"tui/{name}-{size[0]}x{size[1]}", show.frame())

        await show.press("8")
        await show.see("rebuild-follower")
        await show.press("slash", *"reb", "enter", "enter", "shift+tab")
        await keep("playbook-form", "plan rebuild-follower", "db3 (slave, 1180")
        await show.press("escape", "escape")
        await plan(show)
        await keep("playbook-plan", "11 steps, 6 with changes")
        await show.press("r")
        await keep("playbook-confirm", "This will run switchover on prod")
        await show.type("prod")
        await show.press("enter")
        await keep("playbook-approve", "Go on with repoint-others?")
        await show.press("escape")
        await keep("playbook-run", "RUN ASKS", "running")
        await show.press("x")
        await keep("playbook-stop", "stop the run?")
        await show.press("p")
        await keep("playbook-paused", "next: karmactl playbook resume", "unknown")
        await show.press("escape", "escape", "r")
        await keep("playbook-runs", RUN, FAILED)
        await show.press("down", "enter")
        await keep("playbook-undone", "new openssl")

    run(tour, tmp_path, size=size)


def test_pictures_in_the_documents_are_what_it_shows(tmp_path: Path) -> None:
    pictures: dict[str, str] = {}

    async def look(show: Show) -> None:
        await plan(show)
        await show.settle()
        pictures["plan"] = show.app.picture()
        await show.press("r", *"prod", "enter")
        await show.see("the run asks")
        await show.press("escape")
        await show.see("running")
        await show.settle()
        pictures["run"] = show.app.picture()

    run(look, tmp_path, size=(110, 26))
    for name, picture in pictures.items():
        path = ROOT / "docs" / "images" / f"dashboard-{name}.svg"
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.write_text(picture)
        assert path.read_text() == picture, "if this is meant, UPDATE_GOLDEN=1 draws it anew"


def test_a_question_that_is_answered_lets_the_run_go_on(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await play(show)
        await show.type("yes")
        await show.press("enter")
        await show.until(lambda: not player(show).is_busy)
        await show.see("done")

    run(steps, tmp_path)


def test_a_question_can_be_refused(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await play(show)
        live = player(show).live
        assert live is not None
        answer = live.answer
        assert answer is not None
        await show.type("no")
        await show.press("enter")
        await show.until(answer.done)
        assert answer.result() is False

    run(steps, tmp_path)


def test_a_refused_run_says_why_and_the_plan_can_be_made_again(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        player(show).refusal = "the cluster is not as it was planned for; nothing was done"
        await plan(show)
        await show.press("r", *"prod", "enter")
        await show.see("refused", "the cluster is not as it was planned for; nothing was done")
        await show.press("escape", "p")
        await show.until(lambda: len(player(show).asked) == 2)

    run(steps, tmp_path)


def test_production_stands_in_every_question(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await plan(show)
        await show.press("r")
        await show.see("PRODUCTION: prod", "Type prod")
        await show.type("staging")
        await show.press("enter")
        await show.until(lambda: any("that is not prod" in one.message for one in show.app._notifications))
        assert player(show).live is None
        await show.press("escape", "r", *"prod", "enter")
        # Here a yes is not enough, either.
        await show.see("PRODUCTION: prod", "Type prod and press Enter to go on, or no to refuse")

    run(steps, tmp_path, prod(desk=desk(tmp_path, is_production=True), is_production=True))


def test_read_only_plans_and_does_not_even_ask(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await plan(show)
        await show.press("r")
        await show.until(
            lambda: any("read-only: nothing is sent" in one.message for one in show.app._notifications)
        )
        assert player(show).live is None

    run(steps, tmp_path, prod(desk=desk(tmp_path, is_read_only=True), is_read_only=True))


def test_leaving_pauses_a_run_first(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await play(show)
        await show.press("escape", "colon", *"quit", "enter")
        await show.see("leave the dashboard?")
        await show.press("p")
        await show.until(lambda: not show.app.is_running)
        assert player(show).stopped == ["pause"]
        assert player(show).run == RUN

    run(steps, tmp_path)


@pytest.mark.parametrize(
    ("words", "text"), [("playbooks runs", FAILED), (f"playbooks {FAILED}", "new openssl")]
)
def test_jumps_lead_to_runs(words: str, text: str, tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await show.press("colon")
        await show.type(words)
        await show.press("enter")
        await show.see(text)

    run(steps, tmp_path)


async def fill_in(show: Show) -> None:
    """Come to the form of a switchover, and give a reason."""
    await show.press("8")
    await show.see("switchover")
    await show.press("slash", *"swi", "enter", "enter")
    await show.see("plan switchover")
    await show.type("x")


def test_a_form_wants_what_a_parameter_takes(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await fill_in(show)
        # From the reason to what a follower may lag.
        await show.press("shift+tab", *"some", "enter")
        await show.until(
            lambda: any(
                '"some" cannot be the parameter max_lag' in one.message for one in show.app._notifications
            )
        )

    run(steps, tmp_path)


def test_a_recording_has_nothing_to_plan_for() -> None:
    async def go() -> None:
        async with shown(target=Target(NODES, "prod", tick_seconds=0.25)) as show:
            await plan_of_nothing(show)

    async def plan_of_nothing(show: Show) -> None:
        await fill_in(show)
        await show.press("enter")
        await show.see("there are no nodes to plan for: this is a recording")

    asyncio.run(go())


def test_what_reads_playbooks_is_loaded_when_they_are_opened() -> None:
    """YAML, schemas and SSH are half of the memory that a dashboard may have."""
    script = "import sys, karma_tui.app; print({'yaml', 'jsonschema', 'asyncssh'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("missing", ["yaml", "jsonschema"])
def test_what_is_not_installed_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"karma_playbooks", missing}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    async def steps(show: Show) -> None:
        await show.press("8")
        await show.see(f"playbooks need {missing}, which is not installed: pip install 'karma[playbooks]'")

    run(steps, tmp_path, Target(NODES, "prod", tick_seconds=0.25))


def test_a_plan_that_is_left_is_not_waited_for(tmp_path: Path) -> None:
    """A node that takes connections and says nothing must not hold up whoever leaves."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tables = ({"address": f"127.0.0.1:{silent.getsockname()[1]}"},)
        # Longer than a test may take.
        limits = {"timeout_seconds": 1000.0}
        player = Player(Desk("prod", "ada", tables, tmp_path, client_options=limits), tmp_path, print)
        accepted: list[socket.socket] = []

        async def go() -> None:
            planning = asyncio.create_task(player.plan(Wish("switchover", {}), print))
            accepted.append((await asyncio.to_thread(silent.accept))[0])
            planning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await planning

        # Its end waits for all threads.
        asyncio.run(go())
        accepted[0].close()


def test_hosts_without_the_library_for_ssh_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "karma_playbooks.transports.ssh", raising=False)
    monkeypatch.setitem(sys.modules, "asyncssh", None)

    async def go() -> None:
        player = Player(Desk("prod", "ada", TABLES, tmp_path), tmp_path, lambda change: change())
        with pytest.raises(KarmaError, match=r"needs asyncssh, and .* pip install 'karma\[playbooks\]'"):
            await player.plan(Wish("rolling-restart", {}), print)

    asyncio.run(go())
