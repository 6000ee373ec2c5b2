"""karmactl where its configuration is at fault: what still works, and who is blamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ctl
import pytest
from harness import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", wal_fsync=False) as running:
        yield running


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment whose configuration file is no TOML."""
    folder = tmp_path / "config" / "karmactl"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[contexts.prod\n")
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def test_a_broken_file_does_not_block_reading_from_a_node_that_is_named(
    server: Server, broken: dict[str, str]
) -> None:
    address = f"127.0.0.1:{server.port}"
    for command in (("--node", address, "ping"), ("health", "--node", address)):
        ended = ctl.karmactl(*command, environ={**broken, "KARMACTL_CONTEXT": "prod"})
        assert ended.code == 0, ended.stderr
        assert ended.stderr.count("config.toml cannot be read") == 1
    assert ctl.karmactl("ping", environ={**broken, "KARMACTL_NODES": address}).code == 0


def test_a_broken_file_stops_what_needs_it(server: Server, broken: dict[str, str]) -> None:
    address = f"127.0.0.1:{server.port}"
    for command in (
        ("ping",),
        ("ping", "--node", "one"),
        ("ping", "--node", address, "--context", "prod"),
        # Nothing tells whether this is a production node.
        ("add", "a", "1", "--node", address),
        ("series", "drop", "a", "--confirm", "a", "--node", address),
    ):
        ended = ctl.karmactl(*command, environ=broken)
        assert ended.code == 2, command
        assert "config.toml cannot be read" in ended.stderr
    assert server.ask("tree.list") == []


def test_password_files_that_others_can_read_are_found(tmp_path: Path, broken: dict[str, str]) -> None:
    password = tmp_path / "password"
    password.write_text("sekrit")
    password.chmod(0o644)
    (tmp_path / "config" / "karmactl" / "config.toml").write_text(
        f'[[contexts.a.nodes]]\naddress = "a:1"\nsudo_password_file = "{password}"\n'
    )
    ended = ctl.karmactl("context", "validate", environ=broken)
    assert f"others can read the password file {password}: chmod 600" in ended.stdout


def test_what_is_wrong_with_the_environment_is_said_and_the_command_goes_on(
    server: Server, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("sekrit\n")
    token.chmod(0o644)
    environ = {
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "KARMACTL_READONLY": "1",
        "KARMACTL_TOKEN_FILE": str(token),
    }
    ended = ctl.karmactl("ping", "--node", f"127.0.0.1:{server.port}", environ=environ)
    assert ended.code == 0
    assert "did you mean KARMACTL_READ_ONLY" in ended.stderr
    assert f"others can read the token file {token}: chmod 600" in ended.stderr
    assert "sekrit" not in ended.stderr + ended.stdout
