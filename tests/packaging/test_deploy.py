"""deploy/ held against the program and, by the tools of those who read it, against its formats.

Neither containers nor systemd as init can run on the machines that run tests: these are static checks.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from harness import ROOT, Server, free_port, until

from karma.config import load

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MOST_EXPOSURE = 1.5
"""Of 10, as `systemd-analyze security` counts what a unit leaves open."""


def run(*command: str | Path, cwd: Path = DEPLOY) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- systemd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_well_formed_and_hardened(unit: Path, tmp_path: Path, needs: Callable[[str], Path]) -> None:
    analyze = needs("systemd-analyze")
    said = run(analyze, "security", "--offline=true", unit)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= MOST_EXPOSURE
    # Under a name of its own, as an instance, and with a program that is there.
    copy = tmp_path / unit.name.replace("@", "@one")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    said = run(analyze, "verify", "--man=no", copy)
    assert said == ""


def test_the_node_s_unit_starts_a_server_with_options_it_has() -> None:
    text = (DEPLOY / "systemd" / "karma@.service").read_text()
    found = re.search(r"^ExecStart=/usr/local/bin/karma (.*)$", text, re.MULTILINE)
    assert found
    config = load(found[1].replace("%i", "one").split(), {}, lambda _: b"port = 8090")
    assert (config.port, config.directory) == (8090, Path("/var/lib/karma/one"))


# -- Prometheus ------------------------------------------------------------------------------------------


def test_the_alerts_fire_and_stay_silent_as_they_should(needs: Callable[[str], Path]) -> None:
    folder = DEPLOY / "prometheus"
    promtool = needs("promtool")
    run(promtool, "check", "rules", "alerts.yml", cwd=folder)
    run(promtool, "check", "config", "--syntax-only", "prometheus.yml", cwd=folder)
    run(promtool, "test", "rules", "alerts_test.yml", cwd=folder)


def test_servers_have_the_metrics_and_labels_that_alerts_ask_for(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    with (
        Server(tmp_path / "master", http_port=ports[0]) as master,
        Server(
            tmp_path / "slave",
            http_port=ports[1],
            role="slave",
            replication_source_host="127.0.0.1",
            replication_source_port=master.port,
        ),
    ):
        until(lambda: "karma_replica_is_connected" in metrics(ports[0]))
        text = "".join(map(metrics, ports))
    for rule in (rule for group in groups for rule in group["rules"]):
        for name in re.findall(r"\bkarma_\w+", rule["expr"]):
            assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), name
        for label, value in re.findall(r'karma_\w+{(\w+)="(\w+)"}', rule["expr"]):
            assert f'{label}="{value}"' in text


def metrics(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


# -- Containers ------------------------------------------------------------------------------------------


def test_compose_starts_nodes_with_settings_that_hold_together(
    tmp_path: Path, needs: Callable[[str], Path]
) -> None:
    needs("openssl")
    path = DEPLOY / "docker" / "compose.yml"
    compose = yaml.safe_load(path.read_text())
    lines = re.findall(r"^#   (.*)$", path.read_text(), re.MULTILINE)
    assert (lines[0], lines[-1]) == ("cd deploy/docker", "docker compose up")
    run("bash", "-euc", "\n".join(lines[1:-1]), cwd=tmp_path)
    toml = (tmp_path / "karma.toml").read_bytes()
    image = dict(re.findall(r"(KARMA_\w+)=(\S+)", (DEPLOY / "docker" / "Dockerfile").read_text()))
    services = compose["services"]
    nodes = {name: services[name] for name in ("master", "follower-1", "follower-2")}
    for name, node in nodes.items():
        config = load([], image | node["environment"], lambda _: toml)
        assert (config.port, config.http_port, config.bind) == (8080, 8081, "0.0.0.0")
        assert config.auth_token == config.replication_token == (tmp_path / "token").read_text().strip()
        assert config.read_auth_token == (tmp_path / "read-token").read_text().strip()
        assert node["volumes"] == [f"{name}:{config.directory}"]
        assert (config.role == "master") == (name == "master")
        assert config.replication_source_host == (None if name == "master" else "master")
    targets = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert targets["static_configs"][0]["targets"] == [f"{name}:8081" for name in nodes]


def test_compose_opens_nothing_to_the_network_and_defines_what_it_uses() -> None:
    folder = DEPLOY / "docker"
    compose = yaml.safe_load((folder / "compose.yml").read_text())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in compose["secrets"].values():
        assert any(Path(f"/deploy/docker/{secret['file']}").match(pattern) for pattern in ignored if pattern)
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (folder / source).exists()
        for secret in service["secrets"]:
            name = secret if isinstance(secret, str) else secret["source"]
            assert name in compose["secrets"]


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody_in_particular() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for word, rest in steps:
        if word == "COPY" and not rest.startswith("--from="):
            copied.update(rest.split()[:-1])
    assert copied <= kept
    assert all((ROOT / source).exists() for source in copied)
    # A wheel cannot be built without anything that goes into it.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {path.partition("/")[0] for path in [*wheel["packages"], *wheel["shared-data"]]} <= copied
    final = [word for word, _ in steps][-8:]
    assert final.index("USER") < final.index("ENTRYPOINT")
    assert "HEALTHCHECK" in final
