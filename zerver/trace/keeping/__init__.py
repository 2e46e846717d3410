"""Keeping: which runs are kept, and the file that they are kept in."""
