"""Replaying: a run once more, offline; what if; and what its story is."""
