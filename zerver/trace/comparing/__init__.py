"""Comparing: two runs, or many with many."""
