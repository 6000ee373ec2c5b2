"""Every key of every screen does what its hint says. Whoever adds a key adds it here: a test counts them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from stage import DEAD, FAR, MASTER, NEAR, NODES, Show, answer, at_home, shown, stored
from textual.binding import Binding
from textual.screen import ModalScreen

from karma_client import KarmaError
from karma_tui.app import KarmaApp
from karma_tui.screens.events import EventsPage
from karma_tui.screens.fleet import FleetPage, NodePage
from karma_tui.screens.measures import ClientsPage, LatencyPage, ReplicationPage
from karma_tui.screens.modals import Confirm, Explain, LimitPrompt
from karma_tui.screens.page import Page
from karma_tui.screens.playbooks import PlaybooksPage
from karma_tui.screens.series import KeyPage, KeysPage, SeriesPage
from karma_tui.screens.snapshots import SnapshotsPage
from karma_tui.screens.sql import SqlPage
from karma_tui.screens.wal import WalPage
from karma_tui.statements import Place
from karma_tui.target import Target
from karma_tui.widgets.editor import Editor
from karma_tui.widgets.grid import Grid

Check = Callable[[Show], object]
Way = list[tuple[str, Check]]


def page(show: Show) -> str:
    return type(show.app.screen).__name__


def grid(show: Show) -> Grid:
    found = show.app.screen.query(Grid).first()
    assert isinstance(found, Grid)
    return found


def on(name: str) -> Check:
    return lambda show: page(show) == name


def at(row: int) -> Check:
    return lambda show: grid(show).cursor == row


def sees(*texts: str) -> Check:
    return lambda show: all(text in show.frame() for text in texts)


def copied(text: str) -> Check:
    return lambda show: text in show.app.clipboard


def notified(text: str) -> Check:
    return lambda show: any(text in one.message for one in show.app._notifications)


def asked(op: str, **fields: object) -> Check:
    return lambda show: any(one[1] == op and fields.items() <= one[2].items() for one in show.stage.asked)


def acted(op: str) -> Check:
    return lambda show: bool(show.stage.acted) and show.stage.acted[-1].op == op


def typed(text: str) -> Check:
    return lambda show: show.app.screen.query_one(Editor).text == text


EXAMPLE = Place().example()
BACK = ("escape", lambda _: True)
WAYS: dict[str, tuple[list[str], Way]] = {
    # screen: keys that lead there, then (key, what must be so afterwards), one after another
    "FleetPage": (
        [],
        [
            ("down", at(1)),
            ("j", at(2)),
            ("up", at(1)),
            ("k", at(0)),
            ("end", at(3)),
            ("home", at(0)),
            ("G", at(3)),
            ("g", at(0)),
            ("pagedown", at(3)),
            ("pageup", at(0)),
            ("s", sees("NODE▲")),
            ("d", sees("NODE▼")),
            ("S", lambda show: grid(show).order.column is None),
            ("y", copied(f"{MASTER}\tmaster")),
            ("Y", copied("karmactl topology --watch 1 --context prod")),
            ("e", lambda show: list(show.app.folder().glob("karma-fleet-*.csv"))),
            ("E", lambda show: list(show.app.folder().glob("karma-fleet-*.json"))),
            ("V", lambda show: list(show.app.folder().glob("karma-*.svg"))),
            ("T", lambda show: show.app.theme == "light"),
            ("T", lambda show: show.app.theme == "contrast"),
            ("p", sees("This will refuse writes on db1:8080")),
            ("n", lambda show: page(show) == "FleetPage" and not show.stage.acted),
            ("p", on("Confirm")),
            ("y", acted("replication.pause")),
            ("r", on("Confirm")),
            ("y", acted("replication.resume")),
            ("P", sees("Type db1:8080")),
            ("y", on("Confirm")),
            BACK,
            ("u", notified("this node is not fenced")),
            ("question_mark", on("Explain")),
            ("q", on("FleetPage")),
            ("L", lambda show: page(show) == "NodePage" and sees(FAR)(show)),
            ("escape", on("FleetPage")),
            ("enter", lambda show: page(show) == "NodePage" and sees(f"node {MASTER}")(show)),
            ("escape", on("FleetPage")),
            ("slash", lambda show: show.app.focused is not None and show.app.focused.id == "prompt-text"),
            ("b", lambda _: True),
            ("3", lambda show: [row.key for row in grid(show).shown.rows] == [FAR]),
            ("enter", lambda show: show.app.focused is grid(show)),
            ("escape", lambda show: len(grid(show).shown.rows) == 4),
            ("colon", sees("a screen, a node")),
            ("w", lambda show: True),
            ("tab", lambda show: show.app.screen.query_one("#prompt-text").value == "wal"),  # type: ignore[attr-defined]
            BACK,
            ("tab", lambda show: True),
            ("ctrl+p", lambda show: page(show) == "CommandPalette"),
            ("escape", on("FleetPage")),
            ("2", on("SeriesPage")),
            ("3", on("WalPage")),
            ("4", on("ReplicationPage")),
            ("5", on("LatencyPage")),
            ("6", on("ClientsPage")),
            ("7", on("SnapshotsPage")),
            ("8", on("PlaybooksPage")),
            ("9", on("EventsPage")),
            ("0", on("SqlPage")),
            ("escape", lambda show: show.app.focused is grid(show)),
            ("1", on("FleetPage")),
        ],
    ),
    "NodePage": (
        ["enter"],
        [
            ("l", lambda show: page(show) == "LatencyPage" and sees(f"latency of {MASTER}")(show)),
            ("1", on("FleetPage")),
            ("enter", on("NodePage")),
            ("w", on("WalPage")),
            ("1", on("FleetPage")),
            ("enter", on("NodePage")),
            ("n", on("SnapshotsPage")),
            ("1", on("FleetPage")),
            ("enter", on("NodePage")),
            ("b", on("PlaybooksPage")),
            ("1", on("FleetPage")),
            ("enter", on("NodePage")),
            ("escape", on("FleetPage")),
        ],
    ),
    "SeriesPage": (
        ["2"],
        [
            ("R", asked("tree.list")),
            ("a", sees("__karma_canary")),
            ("down", asked("tree.info", series="mails")),
            ("enter", lambda show: page(show) == "KeysPage" and asked("tree.keys", series="mails")(show)),
        ],
    ),
    "KeysPage": (
        ["2", "enter"],
        [
            ("right_square_bracket", asked("tree.keys", cursor=499)),
            ("right_square_bracket", sees("page 3")),
            ("left_square_bracket", sees("page 2")),
            ("R", asked("tree.keys", cursor=499)),
            ("t", asked("tree.top", limit=100)),
            ("t", lambda show: sees("page 2")(show) and grid(show).shown.rows[0].key == "500"),
            ("enter", on("KeyPage")),
            ("escape", on("KeysPage")),
            ("escape", on("SeriesPage")),
        ],
    ),
    "KeyPage": (
        ["2", "enter", "enter"],
        [
            ("r", sees("90 days")),
            ("r", sees("366 days")),
            ("R", asked("counter.series", key=0)),
            ("l", on("LimitPrompt")),
            ("9", lambda _: True),
            ("9", lambda _: True),
            ("enter", sees("day: 60 used, 39 left", "total: 180 used, 0 left")),
            ("escape", on("KeysPage")),
        ],
    ),
    "WalPage": (
        ["3"],
        [
            ("down", lambda _: True),
            ("question_mark", on("Explain")),
            # What is shown beneath a question goes on, and does not begin anew.
            ("escape", lambda show: page(show) == "WalPage" and len(grid(show).shown.rows) == 50),
            ("space", sees("paused")),
            ("space", lambda show: "paused" not in show.frame()),
            ("enter", sees('"lsn": 120000')),
            ("up", sees('"lsn": 119999')),
            ("escape", lambda show: not show.app.screen.query_one("#detail").display),
            ("n", sees(f"wal of {MASTER}")),
            ("N", sees("wal of all nodes")),
            ("slash", lambda _: True),
            ("m", lambda _: True),
            ("a", lambda show: all(row.cells[4] == "mails" for row in grid(show).shown.rows)),
            ("enter", lambda show: len(grid(show).shown.rows) > 5),
            ("escape", lambda show: len(grid(show).shown.rows) == 50),
        ],
    ),
    "ReplicationPage": (
        ["4"],
        [
            ("m", sees("lag in time")),
            ("m", sees("lag in entries")),
            ("enter", lambda show: page(show) == "NodePage" and sees(f"node {DEAD}")(show)),
        ],
    ),
    "LatencyPage": (
        ["5"],
        [
            ("n", sees(f"latency of {NEAR}")),
            ("N", sees(f"latency of {MASTER}")),
            ("down", sees("─ counter.sum ─")),
        ],
    ),
    "ClientsPage": (
        ["6"],
        [("down", at(1)), ("Y", copied(f"karmactl clients --context prod --node {MASTER}"))],
    ),
    "SnapshotsPage": (
        ["7"],
        [
            ("R", asked("snapshot.list")),
            ("v", sees("verified: 3 files, 2 series, 1,234,567 keys", "karmactl snapshot verify")),
            ("f", sees("fetched ", "karmactl snapshot fetch 1777978800_api_requests.tree")),
            ("c", sees("save every series on db1:8080")),
            ("y", acted("snapshot.create_all")),
            ("n", sees(f"snapshots of {NEAR}")),
            ("N", sees(f"snapshots of {MASTER}")),
            (
                "enter",
                sees(f"sql: 1777978800_api_requests.tree of {MASTER}", f"karmactl sql --from node:{MASTER} "),
            ),
        ],
    ),
    "SqlPage": (
        [],
        [
            ("0", on("SqlPage")),
            ("tab", typed(EXAMPLE)),
            ("f5", sees("api_requests   4470", "mails          1190", " 2 rows")),
            ("f4", sees("█ 4.47k", "karmactl sql --plot")),
            ("f4", lambda show: "█" not in show.frame()),
            ("f3", sees("sql: snapshots and log up to now", "karmactl sql --as-of now")),
            ("ctrl+j", sees("mails          2190")),
            ("f3", sees("sql: newest snapshots", "F5 runs the statement")),
            ("f2", lambda show: sees("mails          1190")(show) and len(show.stage.places) == 3),
            ("f2", lambda show: len(show.stage.places) == 4),
            ("ctrl+enter", lambda show: sees("2 rows")(show) and len(show.stage.places) == 4),
            ("f1", on("Explain")),
            ("escape", on("SqlPage")),
            ("ctrl+c", typed("")),
            ("up", typed(EXAMPLE)),
            ("down", typed("")),
            ("s", sees("SELECT  SUMMARIZE")),
            ("tab", typed("series")),
            ("tab", typed("snapshots")),
            ("shift+tab", typed("series")),
            ("space", typed("series ")),
            ("tab", typed("series   ")),
            ("escape", lambda show: show.app.focused is grid(show)),
            ("down", at(1)),
            ("enter", sees('"series": "mails"')),
            ("escape", lambda show: '"series": "mails"' not in show.frame()),
            ("y", copied("mails\t1190")),
            ("Y", copied("karmactl sql series --context prod")),
            ("e", lambda show: list(show.app.folder().glob("karma-sql-*.csv"))),
            ("s", sees("series▲")),
            ("slash", lambda show: show.app.focused is not None and show.app.focused.id == "prompt-text"),
            ("p", lambda show: len(grid(show).shown.rows) == 1),
            ("enter", lambda _: True),
            ("escape", lambda show: len(grid(show).shown.rows) == 2),
            ("i", lambda show: isinstance(show.app.focused, Editor)),
        ],
    ),
    "PlaybooksPage": (
        ["8"],
        [
            ("R", sees("rebuild-follower")),
            ("slash", lambda _: True),
            *((letter, lambda _: True) for letter in "rebuil"),
            ("d", sees("It follows the master, with the master's data.", "cannot be undone")),
            ("enter", lambda show: show.app.focused is grid(show)),
            ("Y", copied(f"karmactl playbook plan rebuild-follower --param node={FAR} --context prod")),
        ],
    ),
    "EventsPage": (
        ["9"],
        [
            ("end", sees("f1-failover", "FAILED", "SUCCEEDED", "fence: no evidence")),
            ("enter", sees('"reason": "db1 is dead"')),
            ("escape", lambda show: not show.app.screen.query_one("#detail").display),
            ("a", sees("action.dead_lettered", "actions.dlq", "karmactl events tail --follow")),
            ("enter", sees('"event_type":')),
        ],
    ),
    "App": (
        [],
        [
            ("comma", on("FleetPage")),
            ("full_stop", on("FleetPage")),
            ("q", lambda show: not show.app.is_running),
        ],
    ),
}


async def go_on(show: Show, key: str) -> None:
    """Press a key that leads to another screen, and wait until there is something on it."""
    before = show.app.screen
    await show.press(key)
    await show.until(lambda: show.app.screen is not before)
    await show.until(lambda: not show.app.screen.query(Grid) or grid(show).shown.rows)


def walk(way: list[str], steps: Way, folder: Path) -> None:
    async def go() -> None:
        async with shown(size=(150, 44), target=at_home(folder), folder=folder) as show:
            show.stage.data = stored(folder / "data")
            for key in way:
                await go_on(show, key)
            for key, check in steps:
                await show.press(key)
                try:
                    await show.until(partial(check, show))
                except AssertionError as error:
                    raise AssertionError(f"{key} on {page(show)}: {error}") from None

    asyncio.run(go())


@pytest.mark.parametrize("name", WAYS)
def test_keys_do_what_their_hints_say(name: str, tmp_path: Path) -> None:
    walk(*WAYS[name], tmp_path)


PAGES = (
    FleetPage,
    NodePage,
    SeriesPage,
    KeysPage,
    KeyPage,
    WalPage,
    ReplicationPage,
    LatencyPage,
    ClientsPage,
    SnapshotsPage,
    PlaybooksPage,
    EventsPage,
    SqlPage,
)


def bindings(owner: type) -> Iterator[str]:
    for binding in owner.__dict__.get("BINDINGS", ()):
        assert isinstance(binding, Binding)
        yield from binding.key.split(",")


def test_every_key_is_pressed_by_a_test() -> None:
    everywhere = {key for _, steps in WAYS.values() for key, _ in steps}
    for kind in PAGES:
        pressed = {key for key, _ in WAYS[kind.__name__][1]}
        assert set(bindings(kind)) <= pressed, kind
    replay = {"comma", "full_stop", "less_than_sign", "greater_than_sign", "equals_sign"}
    for owner in (Page, Grid, Editor, KarmaApp):
        assert set(bindings(owner)) - replay - {"ctrl+c", "ctrl+q"} <= everywhere, owner
    assert {"escape", "n", "y"} == set(bindings(Confirm)) & everywhere
    assert "escape" in set(bindings(Explain)) & set(bindings(LimitPrompt))


def run(steps: Callable[[Show], Awaitable[None]], target: Target | None = None, **options: object) -> None:
    async def go() -> None:
        async with shown(target=target, **options) as show:  # type: ignore[arg-type]
            await steps(show)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        ("wal", "WalPage", "wal of all nodes"),
        ("sn", "SnapshotsPage", "snapshots of"),
        ("series mails", "KeysPage", "mails: page 1"),
        ("series mails 42", "KeyPage", "mails 42"),
        ("series gone", "KeysPage", "series gone does not exist"),
        (f"latency {FAR}", "LatencyPage", f"latency of {FAR}"),
        ("sql", "SqlPage", "sql: newest snapshots"),
        (f"sql {FAR} 1_my own.tree", "SqlPage", f"sql: 1_my own.tree of {FAR}"),
        ("sql elsewhere:8080", "SqlPage", "sql: newest snapshots"),
        (NEAR, "NodePage", f"node {NEAR}"),
    ],
)
def test_jumps_lead_anywhere(words: str, name: str, text: str) -> None:
    async def steps(show: Show) -> None:
        await show.press("colon")
        await show.type(words)
        await show.press("enter")
        await show.until(lambda: page(show) == name)
        await show.see(text)

    run(steps)


def test_a_jump_into_nowhere_says_what_there_is_and_quit_leaves() -> None:
    async def steps(show: Show) -> None:
        await show.press("colon")
        await show.type("nirvana")
        await show.press("enter")
        await show.until(lambda: notified('"nirvana" is no screen')(show))
        await show.press("colon", "q", "enter")
        await show.until(lambda: not show.app.is_running)

    run(steps)


def test_a_number_goes_to_that_key_on_the_server() -> None:
    async def steps(show: Show) -> None:
        await show.press("2")
        await show.see("mails")
        await show.press("enter")
        await show.see("500 keys")
        await show.press("slash")
        await show.type("777123")
        await show.press("enter")
        await show.until(lambda: asked("tree.keys", cursor=777_122)(show))
        await show.until(lambda: grid(show).shown.rows and grid(show).shown.rows[0].key == "777123")

    run(steps)


def test_what_asks_for_a_name_wants_that_name() -> None:
    async def steps(show: Show) -> None:
        await show.press("down", "P")
        await show.see("Type db2:8080")
        await show.type("nonsense")
        await show.press("enter")
        await show.until(lambda: notified("that is not db2:8080")(show))
        assert show.stage.acted == []
        show.app.screen.query_one("#name").value = ""  # type: ignore[attr-defined]
        await show.type("db2:8080")
        await show.press("enter")
        await show.until(lambda: acted("replication.promote")(show))

    run(steps)


def test_production_asks_for_the_name_of_the_context_always() -> None:
    async def steps(show: Show) -> None:
        await show.press("p")
        await show.see("PRODUCTION: prod", "Type prod")

    run(steps, Target(NODES, "prod", is_production=True, tick_seconds=0.25))


def test_read_only_does_not_even_ask() -> None:
    async def steps(show: Show) -> None:
        await show.press("p")
        await show.until(lambda: notified("read-only: nothing is sent")(show))
        assert not isinstance(show.app.screen, ModalScreen)
        assert show.stage.acted == []

    run(steps, Target(NODES, "prod", is_read_only=True, tick_seconds=0.25))


def test_a_refused_action_says_why() -> None:
    async def steps(show: Show) -> None:
        show.stage.refusal = KarmaError("the token may not do this", node=MASTER)
        await show.press("p", "y")
        await show.until(lambda: notified("the token may not do this")(show))

    run(steps)


def test_the_mouse_sorts_moves_and_opens() -> None:
    async def steps(show: Show) -> None:
        table = grid(show)
        await show.pilot.click(Grid, offset=(15, 0))
        await show.until(lambda: table.order.column == "role")
        await show.pilot.click(Grid, offset=(15, 0))
        await show.until(lambda: table.order.is_descending)
        await show.pilot.click(Grid, offset=(3, 3))
        await show.until(lambda: table.cursor == 2)
        await show.pilot.click(Grid, offset=(3, 2), times=2)
        await show.until(lambda: page(show) == "NodePage")
        # Hints are buttons.
        hints = show.frame().splitlines()[-1]
        await show.pilot.click("#hints", offset=(hints.index("back"), 0))
        await show.until(lambda: page(show) == "FleetPage")

    run(steps)


def written(folder: Path) -> list[Path]:
    return list(folder.glob("*.json"))


def test_an_export_holds_the_rows_shown(tmp_path: Path) -> None:
    async def steps(show: Show) -> None:
        await show.press("slash", "d", "b", "3", "enter", "E")
        await show.until(lambda: written(tmp_path))
        (row,) = json.loads(written(tmp_path)[0].read_text())
        assert row["lsn"] == 118_820
        show.app._folder = tmp_path / "missing"
        await show.press("e")
        await show.until(lambda: notified("No such file or directory")(show))

    run(steps, folder=tmp_path)


def test_copies_go_to_the_terminal_as_osc_52() -> None:
    async def steps(show: Show) -> None:
        written: list[str] = []
        show.app._driver.write = written.append  # type: ignore[method-assign,union-attr]
        await show.press("y")
        await show.until(lambda: any(text.startswith("\x1b]52;c;") for text in written))

    run(steps)


@pytest.mark.parametrize("theme", ["dark", "light", "contrast"])
def test_letters_can_be_read_in_every_theme(theme: str) -> None:
    async def steps(show: Show) -> None:
        table = grid(show)
        for name in ("header", "warn", "bad", "dim", "good"):
            style = table.get_component_styles(f"grid--{name}")
            ratio = _ratio(style.color.rgb, table.background_colors[1].rgb)
            assert ratio >= (7 if theme == "contrast" else 4.5), (theme, name, ratio)

    run(steps, theme=theme)


def _ratio(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast as WCAG 2.2 defines it, section 1.4.3."""

    def luminance(rgb: tuple[int, int, int]) -> float:
        parts = [value / 255 for value in rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_fence_can_be_taken_away() -> None:
    async def steps(show: Show) -> None:
        await show.press("u")
        await show.see("Type db1:8080", "fenced for epoch 4")

    fenced = answer(MASTER, fenced_by={"epoch": 4, "node_id": None, "reason": "x"})

    async def go() -> None:
        async with shown([fenced], target=Target((MASTER,), tick_seconds=0.25)) as show:
            await steps(show)

    asyncio.run(go())
