"""A fleet for each test that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playbooks.fleet import Fleet


@pytest.fixture
def sshd(needs: Callable[[str], Path]) -> Path:
    """The daemon's path: it insists on being started by its full one."""
    needs("ssh-keygen")
    beside = Path("/usr/sbin/sshd")
    return beside if beside.exists() else needs("sshd")


@pytest.fixture
def start_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """`start_fleet(sshd)` starts three nodes with daemons, `start_fleet(None)` with this machine as host."""
    fleets: list[Fleet] = []

    def start(binary: Path | None, **options: Any) -> Fleet:
        fleets.append(Fleet(tmp_path / f"fleet{len(fleets)}", binary, **options))
        return fleets[-1]

    yield start
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(start_fleet: Callable[..., Fleet], sshd: Path) -> Fleet:
    """Three nodes on three hosts."""
    return start_fleet(sshd)
