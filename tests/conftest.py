"""What all tests share."""

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from harness import missing
from terminals import Tmux

# No test depends on how busy the machine is.
hypothesis.settings.register_profile("karma", deadline=None)
hypothesis.settings.load_profile("karma")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets its background jobs ignore Ctrl-C, and so would what they start: tests would wait.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def needs() -> Callable[[str], Path]:
    """`needs("strace")` → the path of an outside tool. Without the tool: skipped here, failed in CI."""

    def find(tool: str) -> Path:
        path = shutil.which(tool)
        return Path(path) if path is not None else missing(f"needs {tool}, which is not installed")

    return find


@pytest.fixture
def terminal(needs: Callable[[str], Path], tmp_path: Path) -> Iterator[Tmux]:
    """A shell in a terminal of 120 by 40 letters."""
    tmux = Tmux(needs("tmux"), tmp_path / "tmux.sock")
    try:
        yield tmux
    finally:
        tmux("kill-server")


@pytest.fixture
def tiny_disk(tmp_path: Path, needs: Callable[[str], Path]) -> Iterator[Path]:
    """A file system of its own, two megabytes large."""
    if os.geteuid() != 0:
        missing("needs root, to mount a small file system")
    mount, umount = needs("mount"), needs("umount")
    folder = tmp_path / "tiny"
    folder.mkdir()
    found = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if found.returncode:
        missing("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run([umount, "-l", folder], check=True)


@pytest.fixture
def remount(tiny_disk: Path, needs: Callable[[str], Path]) -> Callable[[str], None]:
    """`remount("ro")` makes the small disk read-only, `remount("rw")` writable again."""
    mount = needs("mount")

    def change(mode: str) -> None:
        subprocess.run([mount, "-o", f"remount,{mode}", tiny_disk], check=True)

    return change


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


# -- How much of a gate runs, and from which seed on --------------------------------------------------------
#
# A gate says with `@pytest.mark.cycles(ci=…, full=…)` how many seeds fit the test run of every change, and
# how many the full run takes (`make faults`, or `--full`). `--cycles N` overrides both, `--seed S` begins
# there. A test that takes `seed` runs once for each; one that takes `seeds` gets them as ranges of `at_once`.


_FIGURES = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gates")
    group.addoption("--full", action="store_true", help="run the full setting of every gate")
    group.addoption("--cycles", type=int, help="seeds to run per gate, whatever its own numbers are")
    group.addoption("--seed", type=int, default=1, help="the seed of the first one; each next adds 1 (1)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cycles(ci, full, at_once=1): how many seeds a gate runs, and how many in one test"
    )


def _seeds(config: pytest.Config, marker: pytest.Mark) -> range:
    options = config.option
    cycles = options.cycles or marker.kwargs["full" if options.full else "ci"]
    return range(options.seed, options.seed + cycles)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a gate that takes `seed` or `seeds` as often as it says."""
    marker = metafunc.definition.get_closest_marker("cycles")
    if marker is None:
        return
    seeds = _seeds(metafunc.config, marker)
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds)
    if "seeds" in metafunc.fixturenames:
        step = marker.kwargs["at_once"]
        parts = [seeds[start : start + step] for start in range(0, len(seeds), step)]
        metafunc.parametrize("seeds", parts, ids=[f"{part[0]}-{part[-1]}" for part in parts])


@pytest.fixture
def cycles(request: pytest.FixtureRequest) -> int:
    """How many a gate runs that draws its own seeds."""
    marker = request.node.get_closest_marker("cycles")
    return len(_seeds(request.config, marker))


@pytest.fixture
def is_full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full run: where a gate's size is not a number of seeds alone."""
    return bool(request.config.option.full)


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
