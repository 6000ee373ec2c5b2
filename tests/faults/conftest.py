"""How many fault histories run, and from which seed on: one pair of options for every gate in this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Server

CI_CYCLES = 20
"""What fits the test run of every change; `make faults` runs ten times as many."""


_FIGURES = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--cycles",
        type=int,
        default=int(os.environ.get("KARMA_FAULT_CYCLES", CI_CYCLES)),
        help=f"fault histories to run per gate (KARMA_FAULT_CYCLES; {CI_CYCLES})",
    )
    group.addoption("--seed", type=int, default=1, help="the seed of the first one; each next adds 1 (1)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes a `seed` once for each history."""
    if "seed" in metafunc.fixturenames:
        first, cycles = metafunc.config.getoption("--seed"), metafunc.config.getoption("--cycles")
        metafunc.parametrize("seed", range(first, first + cycles))


@pytest.fixture
def add_figures(request: pytest.FixtureRequest) -> Callable[[dict[str, int]], None]:
    """Add what a history saw to the figures of its test, which are printed at the end."""
    name = request.node.originalname

    def add(figures: dict[str, int]) -> None:
        found = request.config.stash.setdefault(_FIGURES, {}).setdefault(name, Counter())
        found["histories"] += 1
        found.update(figures)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, figures in config.stash.get(_FIGURES, {}).items():
        terminalreporter.section(name, sep="-")
        terminalreporter.line(", ".join(f"{count} {what}" for what, count in figures.items()))


@pytest.fixture
def can_make_namespaces() -> None:
    """Skip where this process may not make network namespaces: no tool can give it the right to."""
    ip = shutil.which("ip")
    if ip is not None:
        made = subprocess.run(
            [ip, "netns", "add", f"karma{os.getpid()}"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"may not make network namespaces: {made.stderr.strip()}")
        subprocess.run([ip, "netns", "del", f"karma{os.getpid()}"], check=True)


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
