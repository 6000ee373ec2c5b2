"""The dashboard over real servers: what it says when nodes die, come back, lag, are promoted or refuse."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import pytest
from faults.proxy import Proxy
from harness import Server, until
from stage import Show

from karma_client import ReadOnlyError
from karma_tui import actions, headless
from karma_tui.app import KarmaApp
from karma_tui.headless import Kept
from karma_tui.recording import Playback, Recorder, RecordingError, part_of
from karma_tui.target import Target
from karma_tui.widgets.grid import Grid
from karmactl import contexts, settings
from karmactl.commands import dashboard
from karmactl.run import Run

TICK = 0.1


def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def follower_of(master: Server, folder: Path, **options: Any) -> Server:
    return Server(
        folder,
        **{
            "role": "slave",
            "replication_source_host": "127.0.0.1",
            "replication_source_port": master.port,
            **options,
        },
    )


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "master") as server:
        yield server


@asynccontextmanager
async def watching(target: Target, **options: object) -> AsyncIterator[Show]:
    app = KarmaApp(target, **options)  # type: ignore[arg-type]
    async with app.run_test(size=(150, 40)) as pilot:
        yield Show(app, pilot, None)  # type: ignore[arg-type]


def watch(steps: Callable[[Show], Awaitable[None]], *servers: Server, **options: object) -> None:
    """Show servers while steps are done."""
    more = options.pop("target", {})
    assert isinstance(more, dict)
    target = Target(tuple(map(address, servers)), tick_seconds=TICK, **more)

    async def go() -> None:
        async with watching(target, **options) as show:
            await steps(show)

    asyncio.run(go())


async def apart(work: Callable[[], object]) -> None:
    """Do something slow to a server while the dashboard goes on."""
    await asyncio.get_running_loop().run_in_executor(None, work)


def test_a_node_dies_comes_back_and_is_promoted(master: Server, tmp_path: Path) -> None:
    with follower_of(master, tmp_path / "slave") as slave:

        async def steps(show: Show) -> None:
            await show.see("● healthy", "└─ " + address(slave), "2/2 nodes")
            await apart(master.kill)
            await show.see("silent for", "cannot connect", "1/2 nodes", "no node takes writes as master")
            # The other node is asked as ever.
            last = show.app.fleet.node(address(slave)).last
            assert last is not None
            await show.until(lambda: show.app.fleet.node(address(slave)).last.at > last.at + 3 * TICK)  # type: ignore[union-attr]
            # Through the dashboard itself, with the name that it wants.
            await show.press("down", "P")
            await show.see(f"Type {address(slave)}")
            await show.type(address(slave))
            await show.press("enter")
            await show.until(lambda: show.app.fleet.node(address(slave)).known.role == "master")
            await show.see("1/2 nodes")
            # The old master comes back where it was, and is fenced or a second writer until told: both show.
            master.options["port"] = master.port
            await apart(master.restart)
            await show.see("2/2 nodes")
            await show.until(
                lambda: "SPLIT BRAIN" in show.frame() or "fenced" in show.frame(),
            )

        watch(steps, master, slave)


def test_a_follower_that_lags_shows_it_and_catches_up(master: Server, tmp_path: Path) -> None:
    with Proxy() as proxy:
        link = proxy.link(lambda: master.port)
        with follower_of(master, tmp_path / "slave", replication_source_port=link.port) as slave:

            async def steps(show: Show) -> None:
                await show.see("● healthy")
                await show.press("4")
                await show.see("following")
                link.set("hole")
                await apart(lambda: fill(master, 500))
                # It cannot know how far behind it is; its source can.
                await show.until(lambda: lag_of(show, slave) >= 500)
                await show.until(lambda: str(lag_of(show, slave)) in show.frame())
                link.set("open")
                await show.until(lambda: lag_of(show, slave) == 0)
                assert show.app.fleet.node(address(slave)).known.lsn == 500

            watch(steps, master, slave)


def fill(server: Server, entries: int) -> None:
    with server.connect() as connection:
        for number in range(entries):
            connection.ask("counter.increment", series="hits", key=number % 40)


def lag_of(show: Show, server: Server) -> int:
    return show.app.fleet.node(address(server)).newest.lag_entries or 0


def test_a_wrong_token_is_called_that_and_never_shown(tmp_path: Path) -> None:
    with Server(tmp_path / "guarded", auth_token="right-token") as guarded:

        async def steps(show: Show) -> None:
            await show.see("refused for", "unauthorized", "0/1 nodes")
            for key in "234567":
                await show.press(key)
                await show.pilot.pause(0.2)
                assert "wrong-token" not in show.frame()

        watch(steps, guarded, target={"client_options": {"token": "wrong-token"}})

        async def right(show: Show) -> None:
            await show.see("● healthy")

        watch(right, guarded, target={"client_options": {"token": "right-token"}})


def test_a_token_that_is_exchanged_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token")
    with Server(tmp_path / "guarded", auth_token="first-token") as guarded:
        chosen = settings.resolve(
            {"node": (address(guarded),), "token_file": str(file)}, {}, contexts.load(tmp_path / "none.toml")
        )
        run = cast("Run", SimpleNamespace(settings=chosen, environ={"HOME": str(tmp_path)}))

        async def go() -> None:
            async with watching(dashboard.target(run, TICK)) as show:
                await show.see("● healthy")
                guarded.options |= {"port": guarded.port, "auth_token": "second-token"}
                await apart(guarded.kill)
                await apart(guarded.restart)
                await show.see("unauthorized")
                file.unlink()
                await show.see("no token: ")
                file.write_text("second-token")
                await show.see("● healthy")

        asyncio.run(go())


def test_read_only_is_enforced_where_requests_are_sent(master: Server) -> None:
    async def steps(show: Show) -> None:
        await show.see("● healthy", "READ-ONLY")
        with pytest.raises(ReadOnlyError):
            await show.app.source.act(actions.pause(address(master)))
        assert master.ask("replication.status")["paused_until"] is None

    watch(steps, master, target={"is_read_only": True})


def test_a_slow_node_is_asked_less_and_blocks_no_other(master: Server, tmp_path: Path) -> None:
    with Server(tmp_path / "other") as other, Proxy() as proxy:
        link = proxy.link(lambda: other.port)
        target = Target((address(master), f"127.0.0.1:{link.port}"), tick_seconds=TICK)

        async def go() -> None:
            async with watching(target) as show:
                await show.see("2/2 nodes")
                link.set("hole")
                await show.see("slow: last answer")
                before = show.app.fleet.node(address(master)).last
                assert before is not None
                await show.until(lambda: show.app.fleet.node(address(master)).last.at > before.at + 5 * TICK)  # type: ignore[union-attr]
                # One question is under way, however many ticks went by.
                assert len(other.ask("system.clients")) == 2
                link.set("open")
                await show.until(lambda: "slow" not in show.frame() and "silent" not in show.frame())

        asyncio.run(go())


def test_the_log_of_two_nodes_is_one_live_tail(master: Server, tmp_path: Path) -> None:
    with follower_of(master, tmp_path / "slave") as slave:

        async def steps(show: Show) -> None:
            await show.see("● healthy")
            await show.press("3")
            await apart(lambda: fill(master, 30))
            await show.until(lambda: len(show.app.screen.query_one(Grid).shown.rows) == 30)
            table = show.app.screen.query_one(Grid).shown
            assert [row.cells[0] for row in table.rows] == list(range(1, 31))
            assert {row.cells[table.place_of("nodes")] for row in table.rows} == {"all"}
            await show.see("counter.increment", "key=29")

        watch(steps, master, slave)


def test_keys_are_paged_by_the_server_and_a_key_has_days(master: Server) -> None:
    with master.connect() as connection:
        for first in range(0, 1200, 100):
            items = [[key, 20260505, key + 1] for key in range(first, first + 100)]
            connection.ask("series.batch_add", series="hits", items=items)

    async def steps(show: Show) -> None:
        await show.see("● healthy")
        await show.press("2")
        await show.see("hits")
        await show.press("enter")
        await show.see("hits: page 1", "500 keys, ] shows the next")
        await show.press("right_square_bracket")
        await show.see("page 2", " 501")
        await show.press("right_square_bracket")
        await show.see("page 3", "200 keys, the last")
        await show.press("t")
        await show.see("1,199")
        await show.press("enter")
        await show.see("in these 30 days")

    watch(steps, master)


def test_snapshots_are_taken_verified_and_fetched(master: Server, tmp_path: Path) -> None:
    fill(master, 10)

    async def steps(show: Show) -> None:
        await show.see("● healthy")
        await show.press("7")
        await show.see("no snapshot yet")
        await show.press("c")
        await show.see("save every series")
        await show.press("y")
        await apart(lambda: until(lambda: master.ask("snapshot.list")))
        await show.press("R")
        await show.see("_hits.tree")
        await show.press("v")
        await show.see("verified: 1 files, 1 series, 10 keys")
        await show.press("f")
        await show.until(lambda: list(tmp_path.glob("*_hits.tree")))
        await show.see("fetched")

    watch(steps, master, folder=tmp_path)
    assert not list(tmp_path.glob(".*.part"))


def rows_of(query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


# -- Recordings -------------------------------------------------------------------------------------------


def test_what_was_shown_is_recorded_queried_and_shown_again(master: Server, tmp_path: Path) -> None:
    path = tmp_path / "seen.parquet"
    with Recorder(path) as recorder:

        async def steps(show: Show) -> None:
            await show.see("● healthy", " REC ")
            await apart(lambda: fill(master, 50))
            await show.until(lambda: show.app.fleet.nodes[0].known.lsn == 50)
            await apart(master.kill)
            await show.see("silent for")
            await show.pilot.pause(3 * TICK)

        watch(steps, master, recorder=recorder)
    assert not part_of(path).exists()
    rows = rows_of(f"SELECT node, max(lsn), count(error) > 0 FROM '{path}' GROUP BY node")
    assert rows == [(address(master), 50, True)]

    playback = Playback(path)

    async def again(show: Show) -> None:
        await show.see("REPLAY", "● healthy")
        await show.press("equals_sign")
        await show.see("‖")
        playback.move(playback.last - playback.first)
        await show.press("full_stop")
        await show.see("silent for")
        await show.press("less_than_sign")
        await show.see("● healthy")
        await show.press("greater_than_sign")
        await show.see("silent for")
        await show.press("comma")
        await show.until(lambda: playback.at <= playback.last - 0.9 or playback.at == playback.first)
        # Data are not in a recording, and that is said.
        await show.press("2")
        await show.see("is not in a recording")

    async def replay() -> None:
        target = Target(playback.nodes, "seen", tick_seconds=TICK)
        async with watching(target, playback=playback) as show:
            await again(show)

    asyncio.run(replay())


def test_a_recording_whose_writer_was_killed_is_found(tmp_path: Path, master: Server) -> None:
    path = tmp_path / "cut.parquet"
    kept: list[Kept] = []
    headless.record(Target((address(master),), tick_seconds=0.05), path, kept.append, for_seconds=1.0)
    assert kept[0].answers > 3
    lines = rows_of(f"SELECT * FROM '{path}'")
    # As it was before its end: lines, the last of them cut.
    duckdb.sql(f"COPY (FROM '{path}') TO '{part_of(path)}' (FORMAT json)")
    path.unlink()
    with part_of(path).open("ab") as part:
        part.truncate(part.seek(0, 2) - 40)
    playback = Playback(path)
    assert playback.nodes == (address(master),)
    assert len(lines) - 1 == len(rows_of(f"SELECT * FROM '{path}'"))


def test_a_recorder_rotates(tmp_path: Path, master: Server) -> None:
    kept: list[Kept] = []
    target = Target((address(master),), tick_seconds=0.05)
    headless.record(target, tmp_path, kept.append, for_seconds=2.6, rotate_seconds=1.05)
    assert len(kept) == 3
    assert [one.file.exists() for one in kept] == [True] * 3
    assert not list(tmp_path.glob("*.part"))


def test_what_is_no_recording_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="there is no recording"):
        Playback(tmp_path / "none.parquet")
    (tmp_path / "odd.parquet").write_text("odd")
    with pytest.raises(RecordingError, match="is no recording"):
        Playback(tmp_path / "odd.parquet")
    with pytest.raises(RecordingError, match="is there already"):
        Recorder(tmp_path / "odd.parquet")
