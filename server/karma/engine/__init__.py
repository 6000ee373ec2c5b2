"""From a request line to its reply and the log entries it makes, checked against memory as it now is.

Pure: the store is changed, entries are collected, and whatever needs a disk, a clock or a socket is
returned as an `Effect` for the service to carry out.
"""

from karma.engine.dispatch import Effect, Engine, Outcome, Settings

__all__ = ["Effect", "Engine", "Outcome", "Settings"]
