"""Reading commands, every format, piped and in terminals, against one server whose data never change."""

from collections.abc import Iterator

import ctl
import pytest
from harness import Server

DAY = 20260505


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of karmactl beside a server with two series, a limit, a checkpoint and a snapshot."""
    folder = tmp_path_factory.mktemp("reads")
    with Server(folder / "data", max_request_bytes=100_000) as server:
        with server.connect() as connection:
            items = [[key, day, key * 10 + day % 10] for key in range(1, 6) for day in (DAY, DAY + 1)]
            connection.ask("series.batch_add", series="api_requests", items=items)
            connection.ask("series.batch_add", series="größe mit leer", items=[[7, DAY, 2**63]])
            connection.ask("counter.increment", series="__karma_canary", key=1, bucket=DAY)
            connection.ask(
                "recovery.checkpoint", source="usage-export", offset="export-2026-05-05", event_id=9
            )
            connection.ask("snapshot.create_all")
            connection.ask("counter.increment", series="api_requests", key=42, bucket=DAY, value=3)
        yield {
            "KARMACTL_NODES": f"127.0.0.1:{server.port}",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
        }


RANGE = ("--from", "2026-05-05", "--to", "20260505")

STABLE = {
    "series-list": ("series", "list"),
    "series-list-all": ("series", "list", "--all"),
    "series-list-match": ("series", "list", "--match", "api"),
    "series-info": ("series", "info", "api_requests"),
    "series-info-missing": ("series", "info", "nothing"),
    "series-keys": ("series", "keys", "api_requests"),
    "series-keys-page": ("series", "keys", "api_requests", "--limit", "2", "--after", "2"),
    "series-top": ("series", "top", "api_requests"),
    "series-top-range": ("series", "top", "api_requests", "-n", "3", *RANGE, "--min", "4"),
    "series-summary": ("series", "summary", "api_requests"),
    "series-summary-range": ("series", "summary", "api_requests", *RANGE),
    "get": ("get", "api_requests", "3"),
    "get-range": ("get", "api_requests", "3", *RANGE),
    "get-years": ("get", "api_requests", "3", "--from", "2020-01-01", "--to", "2026-12-31"),
    "get-day": ("get", "größe mit leer", "7", "--day", "2026-05-05"),
    "sum": ("sum", "api_requests", "1", "2", "99"),
    "sum-series": ("sum", "api_requests"),
    "points": ("points", "api_requests", "3", "--from", "2026-05-01", "--to", "2026-05-31"),
    "limit-check": ("limit", "check", "api_requests", "1", "42", "--limit", "3", "--window", "total"),
    "recovery-status": ("recovery", "status"),
    "snapshot-list": ("snapshot", "list", "--series", "api_requests"),
    "snapshot-info": ("snapshot", "info"),
    "snapshot-verify": ("snapshot", "verify"),
    "replication-status": ("replication", "status", "--fields", "node,role,state,lsn,lag_entries,error"),
    "topology": ("topology",),
    "idempotency-status": ("idempotency", "status", "--fields", "record_count,hits,conflicts"),
    "stats-match": ("stats", "--match", "wal_current"),
    "fields-unknown": ("series", "info", "api_requests", "--fields", "totla"),
    "call-list": ("call", "tree.keys", "series=api_requests", "limit=2"),
    "call-value": ("call", "counter.sum", "series=api_requests", "key=3"),
    "call-json": ("call", "counter.batch_sum", "series=api_requests", "keys:=[1,2]"),
}


@pytest.mark.parametrize("name", STABLE)
def test_output_is_as_it_was(name: str, environ: dict[str, str]) -> None:
    ctl.compare(name, ctl.transcript(STABLE[name], environ))


VOLATILE = {
    "ping": ("ping",),
    "health": ("health",),
    "stats": ("stats", "--fields", "uptime_seconds,keys,rss_bytes,latency_last_minute"),
    "clients": ("clients",),
    "latency": ("latency", "--total", "--match", "counter.increment"),
    "check": ("check", "--warn-disk", "0", "--crit-disk", "0"),
    "check-prometheus": ("check", "--format", "prometheus", "--warn-disk", "0", "--crit-disk", "0"),
    "check-json": ("check", "--format", "json", "--warn-disk", "0", "--crit-disk", "0"),
}


@pytest.mark.parametrize("name", VOLATILE)
def test_the_form_of_changing_figures_is_as_it_was(name: str, environ: dict[str, str]) -> None:
    text = ctl.transcript(VOLATILE[name], environ, widths=(ctl.WIDE,), is_volatile=True)
    ctl.compare(name, text)
