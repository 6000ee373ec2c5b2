"""Two operators at once: never two nodes that take writes, whatever is cut, killed or late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simulation import controllers

REPLAY = ".venv/bin/python tests/simulation/controllers.py --trace --seed"


@pytest.mark.cycles(ci=20, full=500, at_once=20)
def test_never_do_two_nodes_take_writes(seeds: range, add_figures: Callable[[dict[str, int]], None]) -> None:
    broken, promoted = [], 0
    for seed in seeds:
        found = controllers.simulate(seed)
        add_figures({"contests": 1, **found.figures})
        promoted += found.figures["promoted"]
        if found.world.bugs:
            broken.append(f"seed {seed}: {found.world.bugs[0]}\n  {REPLAY} {seed}")
    assert not broken, "\n".join(broken)
    # A contest in which no one wins would prove nothing.
    assert promoted
