"""Replication: what a source serves to its followers."""
