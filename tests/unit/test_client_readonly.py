"""A client that was made read-only: what writes is refused before it is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peers import FLAVOURS, Flavour, Peer, both_flavours, success

from karma.ops import OPS
from karma_client import ReadOnlyError
from karma_client.calls import ADMIN_READS


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    yield from both_flavours(request.param)


def test_every_operation_that_changes_something_is_refused(flavour: Flavour) -> None:
    writes = [op.name for op in OPS if op.access != "R" and op.name not in ADMIN_READS]
    with (
        Peer(lambda connection: connection.serve(lambda _: success([]))) as peer,
        flavour.connect(peer.address, read_only=True) as client,
    ):
        for op in [*writes, "future.operation"]:
            with pytest.raises(ReadOnlyError, match=rf"{op} writes, and this client is read-only"):
                client.call(op)
        with pytest.raises(ReadOnlyError):
            client.increment("hits", 1, idempotency_key="again")
        assert len(writes) > 25
        assert peer.requests == []
        client.clients()
        client.call("system.clients")
        client.list_series()
        assert peer.ops == ["system.clients", "system.clients", "tree.list"]


def test_reads_of_a_pipeline_go_out_without_its_writes(flavour: Flavour) -> None:
    with (
        Peer(lambda connection: connection.serve(lambda _: success([]))) as peer,
        flavour.connect(peer.address, read_only=True) as client,
    ):
        pipeline = client.pipeline()
        written, listed = pipeline.increment("hits", 1), pipeline.list_series()
        pipeline.flush()
        assert listed.result() == []
        assert isinstance(written.error, ReadOnlyError)
        assert peer.ops == ["tree.list"]
