"""Days on a command line: dates, and days before today, always UTC."""

from __future__ import annotations

import pytest

from karmactl.build import _day


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2026-03-01 00:30 UTC: yesterday is the last of February.
    monkeypatch.setattr("time.time", lambda: 1_772_325_000.0)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-05-05", 20260505),
        ("20260505", 20260505),
        ("today", 20260301),
        ("yesterday", 20260228),
        ("-0d", 20260301),
        ("-1d", 20260228),
        ("-365d", 20250301),
    ],
)
def test_a_day_is_read(text: str, day: int) -> None:
    assert _day(text) == day


@pytest.mark.parametrize(
    "text", ["tomorrow", "3d", "-d", "--3d", "-3", "-3h", "-9999999d", "2026-02-30", "-٣d", ""]
)
def test_what_is_not_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="today, yesterday or -3d"):
        _day(text)
