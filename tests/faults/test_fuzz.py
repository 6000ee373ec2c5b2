"""Fuzz: any bytes at the framing, as requests, as log and as snapshot files, guided by coverage (atheris).

No input may raise, take long, or make memory grow; `fuzz_targets` says what else must hold of each. The
full run makes ten million inputs. A failure prints the input and the command that tries it again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults import fuzz_targets
from harness import ROOT, missing

INPUTS = {
    "framing": (30_000, 1_000_000),
    "requests": (60_000, 600_000),
    "log": (20_000, 200_000),
    "snapshots": (20_000, 200_000),
}
"""Inputs of each target and seed, in CI and in the full run."""
MAX_MEMORY_MB = 256
"""What a process may have resident; it begins with 50, and keeps the inputs that found something."""
MAX_INPUT_BYTES = 1200
MAX_INPUT_SECONDS = 20


@pytest.mark.parametrize("target", INPUTS)
def test_every_input_to_begin_with_is_valid(target: str) -> None:
    """Else the fuzzer would begin, and perhaps stay, in front of the first check."""
    inputs = fuzz_targets.corpus(target)
    assert len(inputs) > 20
    assert all(fuzz_targets.TARGETS[target](content) is not False for content in inputs)


@pytest.mark.cycles(ci=1, full=5)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", INPUTS)
def test_any_bytes_are_borne(
    tmp_path: Path, target: str, seed: int, is_full: bool, add_figures: Callable[[dict[str, int]], None]
) -> None:
    if find_spec("atheris") is None:
        missing("needs atheris, which has no wheel for this Python")
    runs = INPUTS[target][is_full]
    options = {
        "runs": runs,
        "seed": seed,
        "max_len": MAX_INPUT_BYTES,
        "timeout": MAX_INPUT_SECONDS,
        "rss_limit_mb": MAX_MEMORY_MB,
        "artifact_prefix": f"{tmp_path}/",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    # What this process holds at its most would count as the fuzzer's own, were it not the child of a child.
    command = ["timeout", "3600", sys.executable, "-m", "faults.fuzzing", target]
    done = subprocess.run(
        [*command, *(f"-{name}={value}" for name, value in options.items())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        check=False,
    )
    output = done.stdout + done.stderr
    for found in tmp_path.iterdir():
        pytest.fail(
            f"seed {seed}: {found.read_bytes()!r}\n{output[-4000:]}\n"
            f"Try again: PYTHONPATH=tests python -m faults.fuzzing {target} {found}"
        )
    assert done.returncode == 0, output[-4000:]
    stats = {name: int(value) for name, value in re.findall(r"stat::(\w+): +(\d+)", output)}
    add_figures({f"inputs of {target}": stats["number_of_executed_units"]})
    assert stats["number_of_executed_units"] >= runs
