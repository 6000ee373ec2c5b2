"""Parts of the suite on the Pythons that distributions ship, in the environments of `make pythons`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pythons
from harness import ROOT, missing
from pythons import Python

PARTS = [
    "tests/unit",
    "tests/property/test_original_histories.py",
    "tests/property/test_store_property.py",
    "tests/integration/test_original.py",
    "tests/integration/test_shutdown.py",
]
"""Every package, the files, and real servers: what depends on the language and its library."""

Run = Callable[[Python], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run the parts on another Python, warnings as errors; the one that runs now has the whole suite.

    All Pythons start at once, each with one core.
    """
    folder = tmp_path_factory.mktemp("pythons")
    others = {python for python in (pythons.distribution(), pythons.newest()) if python}
    running: dict[Python, tuple[subprocess.Popen[bytes], Path]] = {}
    for python in others:
        if python.is_this or not python.is_ready:
            continue
        output = folder / python.folder.name
        program = str(python.folder / "bin" / "python")
        command = [program, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *PARTS]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [*command, f"--basetemp={folder / f'{output.name}-files'}"],
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        running[python] = process, output

    def wait(python: Python) -> None:
        if python.is_this:
            return
        if python not in running:
            missing(f"needs an environment of Python {python.folder.name}: make pythons")
        process, output = running[python]
        assert process.wait() == 0, output.read_text(errors="replace")[-8000:]

    try:
        yield wait
    finally:
        for process, _ in running.values():
            process.kill()
            process.wait()


@pytest.mark.timeout(1200)
def test_on_the_distribution_s_python(run: Run) -> None:
    python = pythons.distribution()
    if python is None:
        missing(f"needs {pythons.DISTRIBUTION} from Python 3.11 on, with its venv module")
    run(python)


@pytest.mark.timeout(1200)
def test_on_the_newest_python(run: Run) -> None:
    python = pythons.newest()
    if python is None:
        # The one skip that CI allows: a machine need not have a second Python.
        pytest.skip("there is no CPython from 3.12 on: not on the path, in /usr/bin, or below pyenv's root")
    run(python)


def test_what_is_not_a_python_is_passed_over(tmp_path: Path) -> None:
    for name, text in (("python3.12", "exit 1"), ("python3.13", 'echo \'["pypy", [3, 13, 0], "final"]\'')):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        assert pythons.ask(path) is None
