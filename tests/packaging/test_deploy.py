"""deploy/ held against the program and, by the tools of those who read it, against its formats.

Neither containers nor systemd as init can run on the machines that run tests: these are static checks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import trustme
import yaml
from harness import ROOT, Server, free_port, until
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from karma.config import load
from karma.net.listener import is_protected

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
    image = environment_of_the_image()
    services = compose["services"]
    nodes = {name: services[name] for name in ("master", "follower-1", "follower-2")}
    for name, node in nodes.items():
        config = load([], image | node["environment"], lambda _: toml)
        assert (config.port, config.http_port, config.bind) == (8080, 8081, "0.0.0.0")
        tokens = [
            (tmp_path / file).read_text().strip()
            for file in ("token", "read-token", "admin-token", "replication-token")
        ]
        assert tokens == [
            config.auth_token,
            config.read_auth_token,
            config.admin_auth_token,
            config.replication_token,
        ]
        assert len(set(tokens)) == 4
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


def environment_of_the_image() -> dict[str, str]:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    return dict(re.findall(r"^(?:ENV)? +(KARMA_\w+)=(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("more", "is_closed"),
    [
        ({}, True),
        ({"KARMA_READ_AUTH_TOKEN": "r"}, False),
        ({"KARMA_AUTH_TOKEN": "t"}, False),
        ({"KARMA_HOST": "0.0.0.0"}, False),
        ({"KARMA_PROTECTED_MODE": "false"}, False),
    ],
)
def test_without_a_token_the_image_serves_nobody_else_until_told_to(
    more: dict[str, str], is_closed: bool
) -> None:
    config = load([], environment_of_the_image() | more, lambda _: b"")
    assert config.bind == "0.0.0.0"
    assert is_protected(config) is is_closed


def test_images_are_named_in_one_place_by_version_or_digest() -> None:
    folder = DEPLOY / "docker"
    lines = (folder / ".env").read_text().splitlines()
    images = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for image in images.values():
        assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", image), image
    dockerfile = (folder / "Dockerfile").read_text()
    assert re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE) == [
        ("PYTHON_IMAGE", images["PYTHON_IMAGE"].partition("@")[0])
    ]
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    services = yaml.safe_load((folder / "compose.yml").read_text())["services"]
    for service in services.values():
        named = service["build"]["args"]["PYTHON_IMAGE"] if "build" in service else service["image"]
        variable = re.fullmatch(r"\$\{(\w+):\?[^}]+\}", named)
        assert variable is not None, named
        assert variable[1] in images


def _pins(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Package → (version, hashes) of a requirements file, which must hold nothing else."""
    pins: dict[str, tuple[str, list[str]]] = {}
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in text.splitlines():
        pin = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)((?: +--hash=sha256:[0-9a-f]{64})+)", line.strip())
        assert pin is not None, f"{path.name}: {line}"
        pins[pin[1]] = pin[2], pin[3].split()
    return pins


def test_everything_in_a_release_is_pinned_by_version_and_hash() -> None:
    files = {path.stem: _pins(path) for path in (DEPLOY / "single").glob("requirements*.txt")}
    everything = files["requirements"]
    for pins in files.values():
        for name in pins.keys() & everything.keys():
            assert pins[name] == everything[name], name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {
        "requirements-server": project["dependencies"],
        "requirements-image": project["dependencies"] + extras["ctl"],
        "requirements": project["dependencies"]
        + [wish for extra in ("ctl", "sql", "playbooks", "tui") for wish in extras[extra]],
        "requirements-build": ["hatchling", "pyinstaller"],
    }
    assert needed.keys() == files.keys()
    for file, wishes in needed.items():
        for requirement in map(Requirement, wishes):
            version, _ = files[file][canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement} in {file}"


@pytest.mark.parametrize("steps", ["build.py", "Dockerfile"])
def test_releases_and_images_install_by_hash_only(steps: str) -> None:
    text = {
        "build.py": (DEPLOY / "single" / "build.py").read_text(),
        "Dockerfile": (DEPLOY / "docker" / "Dockerfile").read_text(),
    }[steps]
    installs = [line for line in text.splitlines() if re.search(r'pip install|\*PIP, "', line)]
    assert len(installs) >= 2
    assert all("--require-hashes" in line or "--no-index" in line for line in installs), installs


@pytest.mark.parametrize("tls", ["no TLS", "TLS", "client certificates"])
def test_the_health_check_knows_a_server_that_is_alive(tmp_path: Path, tls: str) -> None:
    port = free_port()

    def check() -> int:
        script = DEPLOY / "docker" / "healthcheck.py"
        environment = {**os.environ, "KARMA_HTTP_PORT": str(port)}
        return subprocess.run([sys.executable, script], env=environment, check=False).returncode

    files: dict[str, Path] = {}
    if tls != "no TLS":
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        files = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
        issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
        issued.private_key_pem.write_to_path(files["tls_key"])
        if tls == "client certificates":
            files["tls_ca"] = tmp_path / "ca.pem"
            authority.cert_pem.write_to_path(files["tls_ca"])
    assert check() == 1, "nobody listens yet"
    options: dict[str, Any] = {"http_port": port, **files}
    with Server(tmp_path / "data", **options):
        assert check() == 0
    assert check() == 1


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
