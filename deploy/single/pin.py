"""Write the requirements files of releases: every package by version and by the hashes of its files.

    pip install uv && python deploy/single/pin.py

Versions stay as they are in `requirements.txt` where that is possible; `--upgrade` takes the newest ones.
What is installed for a release or an image comes from these files alone (`pip --require-hashes`), so an index
that serves other files than those seen here ends the build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = "3.11"
"""The oldest that is supported: what it can install, newer ones can, too."""
EVERYTHING = HERE / "requirements.txt"
BUILD_TOOLS = HERE / "build-tools.in"
FILES: dict[Path, list[str]] = {
    # First, because the others take their versions from it.
    EVERYTHING: ["pyproject.toml", "--extra", "all"],
    HERE / "requirements-server.txt": ["pyproject.toml"],
    HERE / "requirements-image.txt": ["pyproject.toml", "--extra", "ctl"],
    HERE / "requirements-build.txt": [str(BUILD_TOOLS.relative_to(ROOT))],
}


def main() -> None:
    """Write all files. Ends with the exit code of a uv that failed."""
    for path, sources in FILES.items():
        command = ["uv", "pip", "compile", *sources, "--generate-hashes", "--python-version", PYTHON]
        command += ["--quiet", "--no-annotate", "--custom-compile-command", "python deploy/single/pin.py"]
        if "--upgrade" in sys.argv:
            command += ["--upgrade"]
        if path != EVERYTHING:
            command += ["--constraint", str(EVERYTHING.relative_to(ROOT))]
        done = subprocess.run([*command, "--output-file", path], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
