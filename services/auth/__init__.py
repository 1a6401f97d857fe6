"""Knows who people are: registration, sessions and the keys that sign their tokens."""
