"""The whole server in a time of its own: hundreds of histories, each as its seed wants it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import history

CI_SEEDS = 300
FULL_SEEDS = 10_000
REPLAY = "python tests/simulation/history.py --trace --seed"


def test_every_history_ends_well(request: pytest.FixtureRequest) -> None:
    is_full = request.config.getoption("--full", default=False)
    broken = []
    for seed in range(1, (FULL_SEEDS if is_full else CI_SEEDS) + 1):
        bugs = history.simulate(seed).world.bugs
        if bugs:
            broken.append(f"{bugs[0]}\n  {REPLAY} {seed}")
    assert not broken, "\n".join(broken)


def test_the_same_seed_is_the_same_history() -> None:
    """In this process, and in one whose hashes are others."""
    for seed in range(1, 11):
        first = history.simulate(seed).world
        assert len(first.trace) > 50
        assert history.simulate(seed).world.trace == first.trace
    script = "from simulation import history; print(history.simulate(10).world.fingerprint())"
    again = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.strip() == history.simulate(10).world.fingerprint()


def test_other_seeds_are_other_histories() -> None:
    assert len({history.simulate(seed).world.fingerprint() for seed in range(1, 6)}) == 5
