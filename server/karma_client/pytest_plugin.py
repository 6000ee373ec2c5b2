"""A server for every test that asks for one.

In `conftest.py`: `pytest_plugins = ["karma_client.pytest_plugin"]`. Then:

    def test_usage_is_counted(karma_server):
        with karma_server.connect() as client:
            client.increment("api_requests", 42)

Other options, or one server for many tests: make a fixture of your own with
`karma_client.testing.running_server`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from karma_client.testing import RunningServer, running_server


@pytest.fixture
def karma_server() -> Iterator[RunningServer]:
    """A server that starts empty and ends with the test."""
    with running_server() as server:
        yield server
