"""Every operation, typed. See `karma_client.binding` for how one definition serves all clients."""

from karma_client.operations.counters import Counters
from karma_client.operations.listings import Listings
from karma_client.operations.replication import LogStreams, Replication
from karma_client.operations.series import Series, SeriesStreams
from karma_client.operations.system import System
from karma_client.operations.transfers import Ingest, Transfers


class Operations(Counters, Series, Ingest, System, Replication):
    """Operations of one request: methods of clients and of pipelines."""


class Tasks(Listings, SeriesStreams, LogStreams, Transfers):
    """Work of several requests: methods of clients."""
