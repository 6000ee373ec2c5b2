"""Other Pythons of this machine that the suite must run on, each with an environment of its own.

`make pythons` (`python -m pythons`) makes the environments below `.pythons`; that asks package registries,
which tests do not. `tests/packaging/test_pythons.py` runs parts of the suite in them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".pythons"
DISTRIBUTION = Path("/usr/bin/python3")
OLDEST, NEW = (3, 11), (3, 12)
NEEDED = (
    f"{ROOT}[all]",
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "prometheus-client",
    "trustme",
)
_ASK = (
    "import json, sys; import ensurepip, venv; "
    "print(json.dumps([sys.implementation.name, sys.version_info[:3], sys.version_info.releaselevel]))"
)


class Python(NamedTuple):
    """A CPython: its version and how it is called."""

    version: tuple[int, int, int]
    path: Path

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return FOLDER / ".".join(map(str, self.version))

    @property
    def is_this(self) -> bool:
        """Whether it is the one that runs now, and with it the whole suite."""
        return self.version == sys.version_info[:3]

    @property
    def is_ready(self) -> bool:
        """Whether its environment is there, with what pyproject.toml declares now."""
        stamp = self.folder / ".installed"
        return stamp.exists() and stamp.read_text() == _declared()

    def prepare(self) -> None:
        """Make the environment, with the project as it lies here."""
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([self.path, "-m", "venv", self.folder], check=True)
        python = self.folder / "bin" / "python"
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", *NEEDED]
        subprocess.run([python, *install], check=True)
        (self.folder / ".installed").write_text(_declared())


def _declared() -> str:
    return sha256((ROOT / "pyproject.toml").read_bytes() + repr(NEEDED).encode()).hexdigest()


def ask(path: Path) -> Python | None:
    """Return the CPython behind a path, None for one that cannot make environments or is not a release."""
    done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        return None
    name, version, level = json.loads(done.stdout)
    found = Python((version[0], version[1], version[2]), path)
    return found if name == "cpython" and level == "final" and found.version >= OLDEST else None


def distribution() -> Python | None:
    """Return the Python that the distribution ships, None when it is too old or cannot make environments."""
    return ask(DISTRIBUTION) if DISTRIBUTION.exists() else None


def newest() -> Python | None:
    """Return the newest CPython from 3.12 on that is on this machine."""
    found = [python for path in _paths() if (python := ask(path)) is not None and python.version >= NEW]
    return max(found, default=None)


def _paths() -> Iterator[Path]:
    """Yield what may be a Python: on the path, where distributions put theirs, and those of pyenv."""
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders += [Path("/usr/bin"), Path("/usr/local/bin"), *versions.glob("*/bin")]
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if re.fullmatch(r"python3\.\d+", path.name))


def main() -> None:
    """Make the environments that are missing."""
    for python in {distribution(), newest()} - {None}:
        if python is not None and not python.is_this and not python.is_ready:
            print(f"{python.path} ({python.folder.name}): making its environment")  # noqa: T201
            python.prepare()


if __name__ == "__main__":
    main()
