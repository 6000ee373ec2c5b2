"""What is installed: built from the sdist, as installers do, and run where nothing else of the project is."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from harness import FIXTURES, ROOT
from packaging.requirements import Requirement

from karma import __version__
from karma.config import help_text

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
EXTRAS = ("ctl", "tui", "playbooks", "sql")
DIRECTORY = str(FIXTURES / "wal-only" / "data")
PACKAGES = [ROOT / path for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))


COMPLETIONS = {
    "bash": "share/bash-completion/completions/karmactl",
    "zsh": "share/zsh/site-functions/_karmactl",
    "fish": "share/fish/vendor_completions.d/karmactl.fish",
}
SHARED = {
    **{f"share/man/{path.parent.name}/{path.name}": path for path in ROOT.glob("man/man?/*")},
    **{where: ROOT / "completions" / shell / Path(where).name for shell, where in COMPLETIONS.items()},
}
"""What is beside the packages, below the prefix of an installation."""


def in_wheel(path: Path) -> str:
    """Where a file of a package is in the wheel."""
    return next(
        path.relative_to(package.parent).as_posix() for package in PACKAGES if package in path.parents
    )


def run(*command: Path | str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=100, **options
    )


def done(*command: Path | str, **options: Any) -> str:
    """Return what a command that must succeed prints."""
    finished = run(*command, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    done(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist: what the sdist lacks, no installer has either."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    done(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "out", cwd=unpacked)
    (path,) = (folder / "out").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of an environment that has the wheel and the dependencies it declares, nothing else.

    The dependencies are linked from here, so that no registry is asked.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    done(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        wheel,
    )
    linked = {extra: _linked(extra, folder / (extra or "declared")) for extra in ("", *EXTRAS)}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("KARMA", "PYTHON", "XDG"))
    }

    def run_installed(
        program: str, *arguments: str, extras: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        environment["PYTHONPATH"] = ":".join(str(linked[extra]) for extra in ("", *extras))
        environment["HOME"] = str(folder)
        return run(python.parent / program, *arguments, cwd=folder, env=environment, **options)

    return run_installed


def _linked(extra: str, folder: Path) -> Path:
    """A folder with links to what an extra declares and to what that needs; "" is what everybody has."""
    folder.mkdir()
    asked = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    waiting, seen = [Requirement(text) for text in asked], set()
    while waiting:
        requirement = waiting.pop()
        if requirement.name in seen or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        waiting += [
            needed
            for needed in map(Requirement, found.requires or [])
            if not needed.marker
            or any(needed.marker.evaluate({"extra": one}) for one in ("", *requirement.extras))
        ]
        for path in {Path(file.parts[0]) for file in found.files or [] if file.parts[0] != ".."}:
            link = folder / path
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(""))) / path)
    return folder


# -- Archives --------------------------------------------------------------------------------------------


def test_the_sdist_holds_what_a_packager_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "tests/harness.py"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in [*SOURCES, *SHARED.values()]} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".karma-data"))]


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = {package.name for package in PACKAGES}
    about = {f"karma-{__version__}.{kind}" for kind in ("data", "dist-info")}
    assert {name.partition("/")[0] for name in names} == folders | about
    shared = {name.partition(".data/data/")[2] for name in names if ".data/" in name}
    assert shared == SHARED.keys()
    assert {f"{folder}/py.typed" for folder in folders} <= names
    assert {in_wheel(path) for path in SOURCES} == {name for name in names if name.endswith(".py")}


def test_the_wheel_s_metadata_are_those_of_the_project(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"karma-{__version__}.dist-info/METADATA").decode()
        entry_points = archive.read(f"karma-{__version__}.dist-info/entry_points.txt").decode()
    head, _, body = metadata.partition("\n\n")
    assert f"Version: {__version__}" in head
    assert "Description-Content-Type: text/markdown" in head
    assert body.strip() == (ROOT / "README.md").read_text().strip()
    required = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", head, re.MULTILINE)
    assert sorted(required) == ["msgpack", "orjson", "uvloop"]
    assert "karma = karma.app:main" in entry_points


# -- Installed -------------------------------------------------------------------------------------------


def test_the_installed_command_answers(installed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert installed("karma", "--version").stdout == f"karma {__version__}\n"
    assert installed("karma", "--help").stdout == help_text()
    for command in ("check", "repair"):
        assert f"karma {command}" in installed("karma", command, "--help").stdout


def test_pages_and_completions_are_where_they_are_looked_for(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    prefix = Path(installed("python", "-c", "import sys; print(sys.prefix)").stdout.strip())
    for where, path in SHARED.items():
        assert (prefix / where).read_bytes() == path.read_bytes(), where


def test_man_finds_the_installed_pages(
    installed: Callable[..., subprocess.CompletedProcess[str]], needs: Callable[[str], Path]
) -> None:
    prefix = installed("python", "-c", "import sys; print(sys.prefix)").stdout.strip()
    for page in SHARED:
        if page.startswith("share/man/"):
            name = Path(page).stem
            assert done(needs("man"), "-M", f"{prefix}/share/man", "-w", name).strip() == f"{prefix}/{page}"


_BASH = """\
source {file}
COMP_WORDS=(karmactl wal ta); COMP_CWORD=2; _karmactl_completion karmactl
echo ${{COMPREPLY[@]}}
"""
# What it would show in a menu is enough here.
_ZSH = """\
autoload -Uz compinit; fpath=({folder} $fpath); compinit -u -D
_describe() {{ print -l ${{(P)3}} }}
words=(karmactl wal ta); CURRENT=3; _karmactl
"""
_FISH = """\
source {file}
complete -C 'karmactl wal ta'
"""
_COMPLETING = {"bash": ("--norc", _BASH), "zsh": ("-f", _ZSH), "fish": ("--no-config", _FISH)}
"""By shell: how it starts without a profile, and what asks for the words behind `karmactl wal ta`."""


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_shells_complete_with_the_installed_files(
    installed: Callable[..., subprocess.CompletedProcess[str]],
    needs: Callable[[str], Path],
    shell: str,
    tmp_path: Path,
) -> None:
    prefix = installed("python", "-c", "import sys; print(sys.prefix)").stdout.strip()
    file = Path(prefix) / COMPLETIONS[shell]
    option, code = _COMPLETING[shell]
    ended = installed(
        str(needs("env")),
        f"PATH={prefix}/bin:{os.environ['PATH']}",
        f"HOME={tmp_path}",
        str(needs(shell)),
        option,
        "-c",
        code.format(file=file, folder=file.parent),
        extras=["ctl"],
    )
    assert ended.stdout.startswith("tail"), ended.stdout + ended.stderr


def test_karmactl_says_what_it_misses_without_its_extra(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = installed("karmactl", "ping")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "pip install 'karma[ctl]'" in ended.stderr


def test_karmactl_runs_with_its_extra_alone(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert installed("karmactl", "--version", extras=["ctl"]).stdout == f"karmactl {__version__}\n"
    names = [in_wheel(path).removesuffix(".py").replace("/", ".") for path in SOURCES]
    modules = [name for name in names if name.startswith(("karmactl.", "karma_sql."))]
    imported = installed("python", "-W", "error", "-c", f"import {', '.join(modules)}", extras=["ctl"])
    assert (imported.returncode, imported.stderr) == (0, "")


NEEDS_EXTRA = {
    "sql": ["sql", "SELECT 1"],
    "playbooks": ["playbook", "plan", "switchover"],
}


@pytest.mark.parametrize("extra", NEEDS_EXTRA)
def test_what_an_extra_is_missing_for_says_which(
    installed: Callable[..., subprocess.CompletedProcess[str]], extra: str
) -> None:
    others = [name for name in EXTRAS if name != extra]
    ended = installed("karmactl", *NEEDS_EXTRA[extra], extras=others)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert f"pip install 'karma[{extra}]'" in ended.stderr


@pytest.mark.parametrize(
    ("extra", "words", "shown"),
    [
        ("sql", ["sql", "SELECT 41 + 1 AS n", "--from", DIRECTORY, "--output", "csv"], "n\n42\n"),
        (
            "playbooks",
            ["playbook", "show", "fence", "--fields", "playbook", "--output", "csv"],
            "playbook\nfence\n",
        ),
    ],
)
def test_an_extra_is_enough_with_karmactl(
    installed: Callable[..., subprocess.CompletedProcess[str]], extra: str, words: list[str], shown: str
) -> None:
    ended = installed("karmactl", *words, extras=["ctl", extra])
    assert (ended.returncode, ended.stdout) == (0, shown), ended.stderr


def test_the_dashboard_needs_its_extra_and_no_other(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    # It looks for a terminal first, and this makes one.
    terminal = "import pty, sys; sys.exit(pty.spawn([sys.executable, '-m', 'karmactl', 'tui']) >> 8)"
    ended = installed("python", "-c", terminal, extras=[name for name in EXTRAS if name != "tui"])
    assert ended.returncode == 2
    assert "pip install 'karma[tui]'" in ended.stdout
    imported = installed("python", "-W", "error", "-c", "import karma_tui.app", extras=["ctl", "tui"])
    assert (imported.returncode, imported.stderr) == (0, "")


def test_only_the_packages_can_be_imported(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = "from importlib.util import find_spec as find\nprint([n for n in {} if find(n)])"
    ours = [package.name for package in PACKAGES]
    others = ["tests", "server", "bench", "harness", "conftest"]
    found = installed("python", "-c", code.format([*ours, *others]))
    assert found.stdout == f"{ours}\n", found.stderr


def test_server_and_client_import_with_the_declared_dependencies_alone(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    names = [in_wheel(path).removesuffix(".py").replace("/", ".") for path in SOURCES]
    modules = [name for name in names if name.startswith(("karma.", "karma_client.", "karma_events."))]
    # Who has pytest loads this one; everybody else never meets it.
    modules.remove("karma_client.pytest_plugin")
    # Only SQL counts in bulk, with numpy.
    modules.remove("karma.offline.columns")
    imported = installed("python", "-W", "error", "-c", f"import {', '.join(modules)}")
    assert (imported.returncode, imported.stderr) == (0, "")


def test_the_installed_server_starts_and_stops(
    installed: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    code = (
        "import pathlib, subprocess, sys\n"
        "karma = pathlib.Path(sys.executable).with_name('karma')\n"
        "server = subprocess.Popen([karma, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)\n"
        "for line in server.stdout:\n"
        "    if 'listening' in line:\n"
        f"        server.send_signal({int(signal.SIGTERM)})\n"
        "sys.exit(server.wait())\n"
    )
    ended = installed("python", "-c", code, "--bind=127.0.0.1", "--port=0", f"--directory={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "karma.wal.lsn").read_text() == "0\n"


def test_the_installed_client_starts_a_server_of_its_own(
    installed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = (
        "from karma_client.testing import running_server\n"
        "with running_server() as server, server.connect() as client:\n"
        "    client.increment('a', 1, 5)\n"
        "    print(client.sum('a', 1))\n"
    )
    ended = installed("python", "-W", "error", "-c", code)
    assert (ended.stdout, ended.stderr) == ("5\n", "")


def test_a_project_that_uses_the_client_is_type_checked(tmp_path: Path) -> None:
    """The operations are descriptors: a type checker must see through them, and see what is wrong."""
    (tmp_path / "right.py").write_text(
        "from datetime import date\n"
        "from karma_client import LimitResult, Pending, connect, connect_async\n"
        "client = connect()\n"
        "added: int = client.increment('a', 1, day=date(2026, 5, 5), idempotency_key='k')\n"
        "limit: LimitResult = client.consume('a', 1, limit=5, window='month')\n"
        "days: dict[date, int] = client.points('a', 1, (20260501, '2026-05-31'))\n"
        "keys: list[int] = [entry.key for entry in client.keys('a')]\n"
        "with client.pipeline() as pipeline:\n"
        "    pending: Pending[int] = pipeline.increment('a', 1)\n"
        "async def main() -> None:\n"
        "    async with connect_async() as client:\n"
        "        total: int = await client.sum('a', 1)\n"
        "        totals: list[int] = [entry.total async for entry in client.keys('a')]\n"
        "        async with client.pipeline() as pipeline:\n"
        "            pending: Pending[int] = pipeline.sum('a', 1)\n"
    )
    (tmp_path / "wrong.py").write_text(
        "from karma_client import connect, connect_async\n"
        "connect().increment(1, 1)\n"
        "connect().increment('a')\n"
        "connect().consume('a', 1, limit=5, window='week')\n"
        "text: str = connect().increment('a', 1)\n"
        "number: int = connect_async().increment('a', 1)\n"
        "connect().pipeline().keys('a')\n"
    )
    checked = run(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        tmp_path / "cache",
        "right.py",
        "wrong.py",
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "server")},
    )
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[:2] for line in errors] == [
        ["wrong.py", str(number)] for number in range(2, 8)
    ], errors
