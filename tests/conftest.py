"""What holds for all tests: thousands of them are in memory, and whoever collects garbage is not to look at each."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()  # leak checks collect thousands of times; beside all that was collected here that took half of the time
