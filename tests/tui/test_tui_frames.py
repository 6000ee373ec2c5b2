"""Every screen, letter by letter, in three sizes, from a fleet that always says the same.

UPDATE_GOLDEN=1 writes the frames anew.
"""

import asyncio
import os
import re
from pathlib import Path

import ctl
import pytest
from harness import ROOT
from stage import DEAD, FAR, MASTER, NEAR, NODES, NOON, Show, answer, at_home, dead, shown, stored

from karma_tui.target import Target

SIZES = [(80, 24), (120, 40), (200, 60)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_screens_look_as_they_did(size: tuple[int, int], tmp_path: Path) -> None:
    async def tour() -> None:
        async with shown(size=size, target=at_home(tmp_path)) as show:
            show.stage.data = stored(tmp_path / "data")

            async def keep(name: str, *texts: str) -> None:
                await show.see(*texts)
                await settle(show)
                ctl.compare(f"tui/{name}-{size[0]}x{size[1]}", show.frame())

            await keep("fleet", MASTER, "silent for")
            await show.press("L")
            await keep("node", "c3", "lag in entries")
            await show.press("escape", "2")
            await keep("series", "mails", "1.00M keys")
            await show.press("enter")
            await keep("keys", "500 keys, ] shows the next")
            await show.press("t")
            await keep("top", "as the server ranks them")
            await show.press("t", "enter")
            await keep("key", "in these 30 days")
            await show.press("3")
            await keep("wal", "120,000", "left out")
            await show.press("enter")
            await keep("wal-detail", '"lsn": 120000')
            await show.press("4")
            await keep("replication", FAR, "e5")
            await show.press("5")
            await keep("latency", "counter.sum")
            await show.press("6")
            await keep("clients", "10.1.0.4")
            await show.press("7")
            await keep("snapshots", "1777975200_mails")
            await show.press("8")
            await keep("playbooks", "rebuild-follower")
            await show.press("9")
            await keep("actions", "SUCCEEDED")
            await show.press("a")
            await keep("events", "action.requested")
            await show.press("question_mark")
            await keep("explain", "keys of events")
            await show.press("escape", "0")
            await keep("sql", "Tab completes what is begun", "tables: counters")
            await show.type("from co")
            await keep("sql-proposals", "counters")
            await show.press("ctrl+c")
            await show.type("from by_day();")
            await show.press("enter")
            await keep("sql-result", "40 rows")
            await show.press("f4")
            await keep("sql-plot", "┤", "karmactl sql --plot")
            await show.press("f4", "escape", "enter")
            await keep("sql-row", '"series": "api_requests"')
            await show.press("i", "ctrl+c")
            await show.type("select series, valeu from counters")
            await show.press("f5")
            await keep("sql-mistake", "^^^^^", "next: did you mean value?")
            await show.press("escape", "1", "p")
            await keep("confirm", "This will refuse writes on db1:8080")

    asyncio.run(tour())


async def settle(show: Show) -> None:
    """Wait until two looks at the screen are the same."""
    before = ""
    while before != (before := show.frame()):
        await show.pilot.pause(0.15)


def test_production_split_brain_and_a_stale_fence_scream() -> None:
    fence = {"epoch": 9, "node_id": None, "reason": "switchover"}
    answers = [
        answer(MASTER),
        answer(NEAR, role="master", epoch=4),
        answer(FAR, fenced_by=fence),
        dead(address=DEAD),
    ]
    target = Target(
        NODES, "prod", is_production=True, is_read_only=True, options=("--context", "prod"), tick_seconds=0.25
    )

    async def look() -> None:
        async with shown(answers, (120, 24), target) as show:
            await show.see("SPLIT BRAIN: 2 nodes take writes as master", "STALE FENCE: db3:8080")
            await settle(show)
            ctl.compare("tui/screams-120x24", show.frame())
            banner = show.app.screen.query_one("Banner")
            assert banner.has_class("production")
            assert banner.styles.background.hex.lower() == "#8b1a1a"
            # On every screen.
            for key in "234567":
                await show.press(key)
                await show.see("SPLIT BRAIN", "STALE FENCE", "PRODUCTION", "READ-ONLY")

    asyncio.run(look())


def test_frames_follow_a_change_of_size() -> None:
    async def look() -> None:
        async with shown(size=(200, 50)) as show:
            await show.see("LAG OVER TIME")
            await show.pilot.resize_terminal(80, 24)
            await show.until(lambda: "LAG OVER TIME" not in show.frame())
            assert all(len(line) <= 80 for line in show.frame().splitlines())
            assert MASTER in show.frame()

    asyncio.run(look())


def test_a_node_that_does_not_answer_any_more_is_called_slow() -> None:
    async def look() -> None:
        answers = [answer(node, NOON - 30 if node == NEAR else NOON) for node in NODES]
        async with shown(answers) as show:
            await show.see("slow: last answer 30s ago")

    asyncio.run(look())


def test_pictures_in_the_documents_are_what_it_shows(tmp_path: Path) -> None:
    async def look() -> None:
        async with shown(size=(110, 26), target=at_home(tmp_path)) as show:
            await show.see(MASTER, "silent for")
            await settle(show)
            pictures = {"fleet": show.app.picture()}
            await show.press("4")
            await show.see(FAR, "e5")
            await settle(show)
            pictures["replication"] = show.app.picture()
            show.stage.data = stored(tmp_path / "data")
            await show.press("0")
            await show.type("SELECT day, sum(value) AS used FROM by_day() GROUP BY day ORDER BY day;")
            await show.press("enter")
            await show.see("20 rows")
            await show.press("f4")
            await show.see("2026-05-24")
            await settle(show)
            pictures["sql"] = show.app.picture()
        for name, picture in pictures.items():
            assert "http" not in re.sub(r'xmlns="[^"]*"', "", picture)
            path = ROOT / "docs" / "images" / f"dashboard-{name}.svg"
            if os.environ.get("UPDATE_GOLDEN") == "1":
                path.parent.mkdir(exist_ok=True)
                path.write_text(picture)
            assert path.read_text() == picture, "if this is meant, UPDATE_GOLDEN=1 draws it anew"

    asyncio.run(look())
