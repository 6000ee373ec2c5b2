"""How much of each gate runs, and from which seed on: one set of options for every gate in this folder.

A gate says with `@pytest.mark.cycles(ci=…, full=…)` how many seeds fit the test run of every change, and how
many the full run takes (`make faults`, or `--full`). `--cycles N` overrides both, `--seed S` begins there. A
test that takes `seed` runs once for each; one that takes `seeds` gets them as ranges of `at_once`.
"""

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

CI_CYCLES, FULL_CYCLES = 20, 200
"""For a gate that does not say."""

_FIGURES = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--full", action="store_true", help="run the full setting of every gate")
    group.addoption(
        "--cycles",
        type=int,
        default=os.environ.get("KARMA_FAULT_CYCLES"),
        help="seeds to run per gate, whatever its own numbers are (KARMA_FAULT_CYCLES)",
    )
    group.addoption("--seed", type=int, default=1, help="the seed of the first one; each next adds 1 (1)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cycles(ci, full, at_once=1): how many seeds a gate runs, and how many in one test"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `seed` or `seeds` as often as its gate says."""
    options = metafunc.config.option
    marker = metafunc.definition.get_closest_marker("cycles")
    sizes = {"ci": CI_CYCLES, "full": FULL_CYCLES, "at_once": 1, **(marker.kwargs if marker else {})}
    cycles = sizes["full" if options.full else "ci"] if options.cycles is None else options.cycles
    seeds = range(options.seed, options.seed + cycles)
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds)
    if "seeds" in metafunc.fixturenames:
        step = sizes["at_once"]
        parts = [seeds[start : start + step] for start in range(0, cycles, step)]
        metafunc.parametrize("seeds", parts, ids=[f"{part[0]}-{part[-1]}" for part in parts])


@pytest.fixture
def is_thorough(request: pytest.FixtureRequest) -> bool:
    """Whether more was asked for than what fits the test run of every change."""
    options = request.config.option
    return bool(options.full or (options.cycles or 0) > CI_CYCLES)


@pytest.fixture
def add_figures(request: pytest.FixtureRequest) -> Callable[[dict[str, int]], None]:
    """Add what a test saw to the figures of its gate, which are printed at the end."""
    name = request.node.originalname

    def add(figures: dict[str, int]) -> None:
        request.config.stash.setdefault(_FIGURES, {}).setdefault(name, Counter()).update(figures)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, figures in config.stash.get(_FIGURES, {}).items():
        terminalreporter.section(name, sep="-")
        terminalreporter.line(", ".join(f"{count:,} {what}" for what, count in figures.items()))


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
