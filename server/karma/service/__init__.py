"""The write path and everything else that gives the pure engine a disk, a clock and an event loop."""
