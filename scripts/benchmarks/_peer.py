"""A peer in a process of its own: asked over its standard input, answers over its standard output, a JSON line each.

One process at a time is asked, and the others are idle: what is compared never shares an interpreter. What a library
prints goes to the standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"


class Peer:
    """A process that is up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._to: Any = process.stdin
        self._from: Any = process.stdout
        self.about = self._answer()

    def ask(self, **what: Any) -> Any:
        """What the process answers."""
        self._to.write(json.dumps(what) + "\n")
        self._to.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._from.readline()
        if not line:
            raise SystemExit(f"{self._process.args} has died with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def peer(script: str, *arguments: str, env: dict[str, str] | None = None, log: Path) -> Iterator[Peer]:
    """Start peers/SCRIPT with these arguments."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, PEERS / script, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(env or {})},
        )  # fmt: skip
    try:
        yield Peer(process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Line:
    """The other end: in the peer."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, what: Any) -> None:
        self._out.write(json.dumps(what) + "\n")

    def questions(self) -> Iterator[dict[str, Any]]:
        for line in sys.stdin:
            yield json.loads(line)


class Window:
    """Counts the steps that begin within so many seconds, and how long it takes from one to the next of its run."""

    def __init__(self, seconds: float) -> None:
        self.began = time.perf_counter()
        self.until = self.began + seconds
        self.begun = 0  # steps
        self.steps: list[float] = []
        self.runs: list[float] = []

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self.until

    def step(self, since: float | None) -> float:
        """A step's body has begun; since: when the one before it did, in the same run. Gives the time."""
        now = time.perf_counter()
        if now < self.until:
            self.begun += 1
            if since is not None:
                self.steps.append(now - since)
        return now

    def run(self, since: float) -> None:
        """A run has ended that began then."""
        self.runs.append(time.perf_counter() - since)

    def told(self) -> dict[str, Any]:
        seconds = self.until - self.began
        return {"rate": self.begun / seconds, "steps": self.steps, "runs": self.runs}


def percentile(values: Sequence[float], share: float) -> float:
    """Of all values, the one that so large a share is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
