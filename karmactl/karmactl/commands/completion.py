"""completion: the script that a shell reads."""

from __future__ import annotations

from click.shell_completion import get_completion_class

from karmactl import build
from karmactl.run import Run

VARIABLE = "_KARMACTL_COMPLETE"


def script(_run: Run, shell: str) -> str:
    """Return a shell's completion script, which calls karmactl back for every proposal."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    # Click's own entry first runs the shell to learn its version; the script works without.
    completer = kind(build.root(), {}, "karmactl", VARIABLE)
    return completer.source_template % completer.source_vars()
