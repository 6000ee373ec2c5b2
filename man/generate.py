"""Write the manual pages and the completion files: `make man`.

They are made from the tables that the programs themselves go by (options, commands, operations, actions) and
are committed, so that a package has them without being able to run what it packs. A test holds the
committed pages against these. With a folder as argument everything goes there instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ctl_pages import groups, karmactl
from playbook_page import playbook
from roff import Page
from server_pages import conf, karma, protocol

from karmactl.commands.completion import script
from karmactl.run import Run

ROOT = Path(__file__).resolve().parent.parent
EDITED = "2026-11-21"
"""The date that pages carry: pages by the clock would differ from one build to the next."""
COMPLETIONS = {
    "bash": "completions/bash/karmactl",
    "zsh": "completions/zsh/_karmactl",
    "fish": "completions/fish/karmactl.fish",
}
"""By shell, under the names by which shells look for them."""


def pages() -> Iterator[Page]:
    """Yield every page."""
    yield karma(EDITED)
    yield conf(EDITED)
    yield protocol(EDITED)
    yield playbook(EDITED)
    yield karmactl(EDITED)
    yield from groups(EDITED)


def main() -> None:
    """Write them."""
    out = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    for page in pages():
        _write(out / f"man/man{page.section}/{page.name}.{page.section}", page.text)
    for shell, path in COMPLETIONS.items():
        # The script is the same for everybody: nothing of a run goes into it.
        _write(out / path, script(cast("Run", None), shell))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
