"""Karma: a counter database. Day-bucketed unsigned counters in memory, durable and replicated."""

__version__ = "2.0.0"
