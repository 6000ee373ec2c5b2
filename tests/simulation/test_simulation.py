"""The whole server in a time of its own: hundreds of histories, each as its seed wants it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from simulation import history

REPLAY = ".venv/bin/python tests/simulation/history.py --trace --seed"


@pytest.mark.cycles(ci=300, full=10_000, at_once=50)
def test_every_history_ends_well(seeds: range, add_figures: Callable[[dict[str, int]], None]) -> None:
    broken = []
    for seed in seeds:
        found = history.simulate(seed)
        add_figures({"histories": 1, **{what.replace("_", " "): n for what, n in found.figures.items()}})
        if found.world.bugs:
            broken.append(f"seed {seed}: {found.world.bugs[0]}\n  {REPLAY} {seed}")
    assert not broken, "\n".join(broken)


def test_the_same_seed_is_the_same_history() -> None:
    """In this process, and in one whose hashes are others."""
    for seed in range(1, 11):
        first = history.simulate(seed).world
        assert len(first.trace) > 50
        assert history.simulate(seed).world.trace == first.trace
    script = "from simulation import history; print(history.simulate(10).world.fingerprint())"
    folder = str(Path(__file__).parents[1])
    again = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.strip() == history.simulate(10).world.fingerprint()


def test_other_seeds_are_other_histories() -> None:
    assert len({history.simulate(seed).world.fingerprint() for seed in range(1, 6)}) == 5
