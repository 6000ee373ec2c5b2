"""A monthly quota in front of an API, with the client library: `python examples/quota.py 127.0.0.1:8080 42 3`

Asks for one mail of user 42, who may send 3 a month. Exit code 0: go ahead; 1: the quota is used up; 2:
nobody could be asked, and what that means is the application's decision.
"""

from __future__ import annotations

import sys

from karma_client import KarmaError, connect


def main(node: str, user: str, limit: str) -> int:
    """Consume one of the quota and say what is left of it."""
    # An API that waits longer for its quota than for its work has chosen the wrong timeout.
    with connect(node, timeout_seconds=0.5, connect_timeout_seconds=0.5) as client:
        try:
            found = client.consume("mails", int(user), limit=int(limit), window="month")
        except KarmaError as error:
            print(f"unknown: {error}", file=sys.stderr)
            return 2
    print(f"allowed={found.allowed} used={found.used} remaining={found.remaining}".lower())
    return 0 if found.allowed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
