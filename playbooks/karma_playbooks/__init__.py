"""Playbooks: what an operator does to a fleet, planned, journaled, resumable and, where it can be, undone."""
