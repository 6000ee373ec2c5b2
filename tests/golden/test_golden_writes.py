"""Writing commands against a real server: every format, and the guards before what destroys."""

from collections.abc import Iterator

import ctl
import pytest
from ctl import Step
from harness import Server


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of karmactl beside a server, with a production context that has the same server."""
    folder = tmp_path_factory.mktemp("writes")
    with Server(folder / "data", max_request_bytes=100_000) as server:
        address = f"127.0.0.1:{server.port}"
        (folder / "config" / "karmactl").mkdir(parents=True)
        (folder / "production" / "karmactl").mkdir(parents=True)
        (folder / "production" / "karmactl" / "config.toml").write_text(
            f'[contexts.prod]\nproduction = true\nnodes = ["{address}"]\n'
        )
        yield {
            "KARMACTL_NODES": address,
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PRODUCTION": str(folder / "production"),
            "ADDRESS": address,
            "FOLDER": str(folder / "fetched"),
        }


REPEATABLE = {
    "add": ("add", "counted", "42", "5", "--day", "2026-05-05", "--idempotency-key", "fix-1"),
    "sub": ("sub", "taken", "42", "5", "--day", "2026-05-05"),
    "set": ("set", "exact", "42", "100", "--day", "2026-05-05"),
    "series-create": ("series", "create", "fresh"),
    "series-compact": ("series", "compact"),
    "limit-consume": ("limit", "consume", "emails", "7", "--limit", "3", "--idempotency-key", "a"),
    "limit-consume-refused": ("limit", "consume", "emails", "8", "9", "--limit", "3"),
    "snapshot-create": ("snapshot", "create"),
    "snapshot-create-series": ("snapshot", "create", "fresh"),
    "idempotency-prune": ("idempotency", "prune", "2020-01-01", "--yes"),
    "dry-run": ("add", "never", "1", "--dry-run"),
    "read-only": ("add", "never", "1", "--read-only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATABLE)
def test_output_is_as_it_was(name: str, environ: dict[str, str]) -> None:
    ctl.compare(name, ctl.transcript(REPEATABLE[name], environ))


STORIES: dict[str, list[str | Step]] = {
    "series-drop": [
        "add dropped 1 10",
        "series drop missing --confirm missing",
        "series drop dropped",
        "series drop dropped --yes",
        "series drop dropped --confirm dropt",
        "series drop dropped --dry-run",
        Step("series drop dropped", ctl.WIDE, "no\n"),
        "series info dropped",
        Step("series drop dropped", ctl.WIDE, "dropped\n"),
        "series info dropped",
    ],
    "series-reset": ["add emptied 1 10", "series reset emptied --confirm emptied", "series keys emptied"],
    "series-delete-before": [
        "add aged 1 10 --day 2024-01-01",
        "add aged 1 7 --day 2026-01-01",
        "series delete-before aged 2025-01-01",
        "series delete-before aged 2025-01-01 --confirm aged",
        "get aged 1",
    ],
    "idempotency-prune-asks": [
        "idempotency prune 2020-01-01",
        Step("idempotency prune 2020-01-01", ctl.WIDE, "n\n"),
        Step("idempotency prune 2020-01-01", ctl.WIDE, "y\n"),
    ],
    "call-guards": [
        "call counter.increment series=called key=1",
        "call counter.increment series=called key=1 --read-only",
        "call counter.reset series=called key=1",
        "call counter.reset series=called key=1 --dry-run",
        "call counter.reset series=called key=1 --confirm counter.reset",
        "call counter.sum series=called key=1",
        "call counter.sum series",
        "call counter.sum series=called token=secret",
        "call counter.batch_sum series=called keys:=[1",
        "call counter.smu series=called",
    ],
    "recovery-checkpoint": [
        "recovery checkpoint export",
        "recovery checkpoint export --offset 9 --fields source,offset,event_id",
        "recovery status export --fields source,offset --output csv",
    ],
    "usage": [
        "serise list",
        "list",
        "series drp",
        "series",
        "series top",
        "series top api --limit x",
        "get api 18446744073709551616",
        "get api 1 --day 2026-02-30",
        "get api 1 --from 2026-05-05 --to 2026-05-01",
        "points api 1 --to 2026-05-01 --from 2026-05-02",
        "series top api --from 2024-01-01 --to 2026-01-01",
        "get api 1 --day 2026-05-05 --to 2026-05-06",
        "ping --ndoe x",
        "ping --node 1.2.3.4:99999",
        "ping --timeout never",
        "add api 1 --watch 1",
        "stats --wait-until healthy",
        "health --wait-until happy",
        "series list --output xml",
    ],
    "waiting": [
        "health --wait-until healthy --fields status,role",
        "topology --wait-until caught-up --fields health",
        "health --wait-until lsn=1 --fields status",
        "health --wait-until lsn=1000000000 --timeout 300ms",
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_is_as_it_was(name: str, environ: dict[str, str]) -> None:
    # The LSN depends on how many of these tests run.
    ctl.compare(name, ctl.story(STORIES[name], environ, is_volatile=name == "waiting"))


def test_production_asks_for_the_name_of_the_context(environ: dict[str, str]) -> None:
    environ = {**environ, "XDG_CONFIG_HOME": environ["PRODUCTION"], "KARMACTL_NODES": ""}
    steps: list[str | Step] = [
        "--context prod add precious 1 10",
        "--context prod series drop precious",
        "--context prod series drop precious --confirm precious",
        "--context prod idempotency prune 2020-01-01 --yes",
        Step("--context prod series drop precious", ctl.WIDE, "precious\n"),
        # Production stays production when its node is named by address.
        "series drop precious --node $ADDRESS",
        Step("--context prod series drop precious", ctl.WIDE, "prod\n"),
    ]
    ctl.compare("production", ctl.story(steps, environ))


def test_a_download_is_continued_and_checked(
    environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fetch")
    ctl.karmactl("add", "fetched", "1", "10", environ=environ)
    ctl.karmactl("snapshot", "create", "fetched", environ=environ)
    listed = ctl.karmactl(
        "snapshot", "list", "--series", "fetched", "--output", "csv", "--fields", "file", environ=environ
    )
    name = listed.stdout.splitlines()[1]
    fetch = ("snapshot", "fetch", name, "--to", str(folder))
    first = ctl.karmactl(*fetch, environ=environ)
    assert (first.code, "checked" in first.stdout) == (0, True)
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / f"{name}.part").write_bytes(whole[:7])
    again = ctl.karmactl(*fetch, environ=environ)
    assert (again.code, (folder / name).read_bytes()) == (0, whole)
    assert "going on at 7 B" in again.stderr
    assert "present" in ctl.karmactl(*fetch, environ=environ).stdout
    (folder / name).unlink()
    (folder / f"{name}.part").write_bytes(b"x" * 7)
    spoilt = ctl.karmactl(*fetch, environ=environ)
    assert (spoilt.code, "size or checksum" in spoilt.stderr) == (7, True)
    assert [path.name for path in folder.iterdir()] == [f"{name}.meta.json"]
    ctl.karmactl(*fetch, environ=environ)
    text = ctl.transcript(fetch, environ)
    ctl.compare("snapshot-fetch", text.replace(str(folder), "FOLDER"))


def test_a_snapshot_is_loaded_over_its_series(environ: dict[str, str]) -> None:
    ctl.karmactl("add", "loaded", "1", "10", environ=environ)
    ctl.karmactl("snapshot", "create", "loaded", environ=environ)
    listed = ctl.karmactl(
        "snapshot", "list", "--series", "loaded", "--output", "csv", "--fields", "file", environ=environ
    )
    name = listed.stdout.splitlines()[1]
    steps: list[str | Step] = [
        "add loaded 1 5",
        "snapshot load 1700000000_missing.tree --confirm missing",
        f"snapshot load {name}",
        f"snapshot load {name} --confirm loaded",
        "get loaded 1",
    ]
    ctl.compare("snapshot-load", ctl.masked(ctl.story(steps, environ)))
