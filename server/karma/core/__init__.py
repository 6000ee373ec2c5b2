"""The in-memory truth: counters, idempotency records and ingest streams. Pure: no clock, no I/O."""
