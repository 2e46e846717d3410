"""Telemetry: runs as spans, numbers and lines, for those who collect them."""
