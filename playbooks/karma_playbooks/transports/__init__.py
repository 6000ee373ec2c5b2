"""Hosts: how commands get there and back. `shell` is what a way must offer, `host` what all share."""
