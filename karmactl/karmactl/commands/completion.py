"""completion: the script that a shell reads."""

from __future__ import annotations

from karmactl import build, shells
from karmactl.run import Run


def script(_run: Run, shell: str) -> str:
    """Return a shell's completion script, which calls karmactl back for every proposal."""
    # Click's own entry first runs the shell to learn its version; the script works without.
    completer = shells.KINDS[shell](build.root(), {}, "karmactl", shells.VARIABLE)
    return completer.source_template % completer.source_vars()
