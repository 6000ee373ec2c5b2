"""Soak: the run of `make soak`, for some seconds here and for half an hour in the full setting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from harness import ROOT

MINUTES = (0.4, 30.0)
"""In CI, and in the full run."""


@pytest.mark.cycles(ci=1, full=1)
@pytest.mark.timeout(3600)
def test_nothing_grows_under_load(
    seed: int, is_thorough: bool, add_figures: Callable[[dict[str, int]], None]
) -> None:
    minutes = MINUTES[is_thorough]
    done = subprocess.run(
        [sys.executable, "-m", "faults.soak", "--minutes", str(minutes), "--seed", str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout
    add_figures({"seconds of load": int(minutes * 60)})
