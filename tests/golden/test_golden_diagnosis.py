"""doctor, support-bundle and bench against real servers, and that no bundle holds a token."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
from ctl import Step
from harness import Server, free_port

from karmactl.commands import doctor

WRITE, READ, OTHER = "write-token-1", "read-token-2", 'other"tökén-3'


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("diagnosis")
    (folder / "config" / "karmactl").mkdir(parents=True)
    (folder / "write.token").write_text(WRITE + "\n")
    (folder / "write.token").chmod(0o644)
    with (
        Server(folder / "data") as server,
        Server(folder / "guarded", auth_token=WRITE, read_auth_token=READ) as guarded,
    ):
        # Somebody put a token where it does not belong: into the name of a series.
        for name in (WRITE, OTHER):
            with guarded.connect() as connection:
                connection.ask("counter.increment", token=WRITE, series=name, key=1)
        with guarded.connect() as connection:
            connection.ask("snapshot.create_all", token=WRITE)
        (folder / "config" / "karmactl" / "config.toml").write_text(
            f'[contexts.guarded]\nproduction = true\nnodes = ["127.0.0.1:{guarded.port}"]\n'
            f'token_file = "{folder}/write.token"\n'
            f'[contexts.other]\nnodes = ["127.0.0.1:{guarded.port}"]\ntoken_env = "OTHER_TOKEN"\n'
        )
        yield {
            "NODE": f"127.0.0.1:{server.port}",
            "DEAD": f"127.0.0.1:{free_port()}",
            "BUNDLE": str(folder / "bundle.tar.gz"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "OTHER_TOKEN": OTHER,
            "READ_TOKEN": READ,
        }


def test_doctor(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    # This machine's disk and speed are no finding here.
    monkeypatch.setattr(doctor, "BOUNDS", dict.fromkeys(doctor.BOUNDS))
    steps: list[str | Step] = [
        "doctor --node $NODE --output jsonl --fields level,place,check,advice",
        "doctor --node $NODE --node $DEAD --output csv --fields level,place,check",
        "doctor --node $DEAD",
        "doctor --context guarded --output csv --fields level,place,check",
        "doctor --context guarded --token-env READ_TOKEN --output csv --fields level,check",
        "doctor --node $NODE --token-env NO_SUCH_VARIABLE",
        Step("doctor --node $DEAD", columns=100),
    ]
    ctl.compare("doctor", ctl.story(steps, environ))


def test_a_bundle_holds_everything_but_tokens(environ: dict[str, str]) -> None:
    ended = ctl.karmactl("support-bundle", environ["BUNDLE"], "--context", "guarded", environ=environ)
    assert ended.code == 0, ended.stderr
    found = {}
    with tarfile.open(environ["BUNDLE"]) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            found[member.name.partition("/")[2]] = stream.read()
    for name, data in found.items():
        for token in (WRITE, READ, OTHER):
            # READ is known to nobody here but the server, which never tells.
            for spelt in (token, json.dumps(token)[1:-1]):
                assert spelt.encode() not in data, name
    folder = next(name for name in found if name.startswith("nodes/")).rpartition("/")[0]
    assert set(found) == {
        *("manifest.json", "config.json", "settings.json", "doctor.json", f"{folder}/system.metrics.txt"),
        *(f"{folder}/{op}.json" for op in ("system.health", "system.stats", "system.latency")),
        *(f"{folder}/{op}.json" for op in ("replication.status", "snapshot.info")),
    }
    assert json.loads(found["config.json"])["contexts"]["other"]["token_env"] == "OTHER_TOKEN"
    assert b"********" in found[f"{folder}/snapshot.info.json"]
    assert Path(environ["BUNDLE"]).stat().st_mode & 0o077 == 0


def test_a_bundle_of_a_dead_node_says_so(environ: dict[str, str]) -> None:
    ended = ctl.karmactl("support-bundle", environ["BUNDLE"], "--node", environ["DEAD"], environ=environ)
    assert ended.code == 7
    assert "cannot connect" in ended.stderr
    assert Path(environ["BUNDLE"]).exists()


BENCH = ("bench", "--for", "0.05", "--connections", "2", "--pipeline", "4", "--batch", "3", "--keys", "10")


def test_bench(environ: dict[str, str]) -> None:
    on_node = {**environ, "KARMACTL_NODES": environ["NODE"]}
    text = ctl.transcript(BENCH, on_node, formats=("table", "csv"), widths=(ctl.NARROW,), is_volatile=True)
    ctl.compare("bench", text)
    listed = ctl.karmactl("series", "list", "--all", environ=on_node)
    assert "__karma_bench" not in listed.stdout
    refused = [
        ctl.karmactl(*BENCH, "--connections", "65", environ=on_node).code,
        ctl.karmactl(*BENCH, "--read-only", environ=on_node).code,
        ctl.karmactl(*BENCH, "--only", "read", "--series", "none", environ=on_node).code,
    ]
    assert refused == [2, 4, 3]


def test_bench_asks_before_it_writes_in_production(environ: dict[str, str]) -> None:
    line = (*BENCH, "--context", "guarded", "--only", "increment")
    piped = ctl.karmactl(*line, environ=environ)
    assert (piped.code, "--confirm guarded" in piped.stderr) == (4, True)
    assert ctl.karmactl(*line, "--dry-run", environ=environ).stdout.startswith("dry run: would send")
    assert ctl.karmactl(*line, environ=environ, columns=100, typed="no\n").code == 4
    named = ctl.karmactl(*line, "--series", "mine", "--confirm", "guarded", "-o", "json", environ=environ)
    assert named.code == 0, named.stderr
    total = ctl.karmactl("sum", "mine", "--context", "guarded", "-o", "json", environ=environ)
    assert json.loads(total.stdout)[0]["value"] == json.loads(named.stdout)[0]["requests"] > 0
