"""Runnable examples; each is a package of its own."""
