"""What the gates need of the machine, and nodes that follow each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: gates that sync a thousand times a second take it."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="karma-faults-", dir=shared) as name:
        yield Path(name)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start("b", source=7000)` starts a node, a slave if it is told the port of a source."""
    nodes: list[Server] = []

    def start_node(name: str, source: int | None = None, **options: Any) -> Server:
        if source is not None:
            options = {
                "role": "slave",
                "replication_source_host": "127.0.0.1",
                "replication_source_port": source,
                **options,
            }
        nodes.append(Server(tmp_path / name, **options))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.kill()
