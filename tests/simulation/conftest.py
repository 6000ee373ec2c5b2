"""How many histories the simulation runs: with tests/faults, `--full`, `--cycles` and `--seed` say it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

CI_SEEDS, FULL_SEEDS = 300, 10_000
_AT_ONCE = 50
"""Seeds in one test: a second or two."""

_FIGURES = pytest.StashKey[Counter[str]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `seeds` for all of them, some at once."""
    if "seeds" in metafunc.fixturenames:
        option = metafunc.config.getoption
        wanted = option("--cycles", default=None) or (
            FULL_SEEDS if option("--full", default=False) else CI_SEEDS
        )
        first = option("--seed", default=1)
        ends = [*range(first, first + wanted, _AT_ONCE), first + wanted]
        parts = [range(start, end) for start, end in pairwise(ends)]
        metafunc.parametrize("seeds", parts, ids=[f"{part[0]}-{part[-1]}" for part in parts])


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Counter[str]:
    """What all histories saw together: printed at the end."""
    return request.config.stash.setdefault(_FIGURES, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, None)
    if figures:
        terminalreporter.section("simulated histories", sep="-")
        terminalreporter.line(
            ", ".join(f"{figures[what]} {what.replace('_', ' ')}" for what in sorted(figures))
        )
