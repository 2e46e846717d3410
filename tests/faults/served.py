"""A shop in a process of its own, and what tests do to it and ask it."""

from __future__ import annotations

import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]

#: Seconds after which a test gives up.
GIVE_UP = 30.0


@attrs.frozen
class Reply:
    """What the shop said. status: 0 when it said nothing. seconds: how long it took."""

    status: int
    retry_after: str | None
    seconds: float
    replayed: bool = False


class Shop:
    """The process. before: a command that starts it, instead of being started here."""

    def __init__(
        self, journal: str, folder: Path, *, lease: float = 10.0, before: Sequence[str] = (), says: str = ""
    ) -> None:
        self.folder = folder
        optimized = ["-O"] if not __debug__ else []
        command = [sys.executable, *optimized, "-m", "tests.faults.shop", journal, str(folder), str(lease), says]
        self.process = subprocess.Popen(
            [*before, *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.place = self._line().removeprefix("http://")

    def order(self, number: int, key: str | None = None) -> Reply:
        connection = http.client.HTTPConnection(self.place, timeout=GIVE_UP)
        began = time.monotonic()
        try:
            fields = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
            connection.request("POST", "/orders", str(number), fields)
            answer = connection.getresponse()
            answer.read()
            replayed = answer.getheader("Idempotent-Replayed") == "true"
            return Reply(answer.status, answer.getheader("Retry-After"), time.monotonic() - began, replayed)
        except (OSError, http.client.HTTPException):
            return Reply(0, None, time.monotonic() - began)
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> list[str]:
        """End it as it should; what it says then."""
        said, _ = self.process.communicate("", timeout=GIVE_UP)
        assert self.process.returncode == 0
        return said.splitlines()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def shop(
    journal: str, folder: Path, *, lease: float = 10.0, before: Sequence[str] = (), says: str = ""
) -> Iterator[Shop]:
    served = Shop(journal, folder, lease=lease, before=before, says=says)
    try:
        yield served
    finally:
        served.go_on()
        served.end()


def until(what: Callable[[], bool], why: str) -> float:
    """Wait until it is so; the seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < GIVE_UP, why
        time.sleep(0.05)
    return time.monotonic() - began


@attrs.frozen
class Books:
    """What the provider knows: charges that stand, by the order's number; calls by key; orders."""

    standing: dict[int, int]
    calls: dict[str, int]
    orders: frozenset[int]


def books(folder: Path) -> Books:
    with closing(sqlite3.connect(folder / "provider.db", timeout=GIVE_UP)) as database:
        charges = database.execute("select number, count(*) from charges where not undone group by number")
        calls = database.execute("select key, count from calls")
        orders = database.execute("select number from orders")
        return Books(dict(charges), dict(calls), frozenset(number for (number,) in orders))


def balanced(folder: Path) -> bool:
    """Whether every order has one charge, and each charge that stands has an order."""
    kept = books(folder)
    return kept.standing == dict.fromkeys(kept.orders, 1)


def check_books(folder: Path, acknowledged: Sequence[int], crashes: int = 0) -> None:
    """Every order has one charge, and each charge an order; each that was acknowledged is there; no key was asked for
    more often than a fault could have hit it.
    """
    kept = books(folder)
    assert set(acknowledged) <= kept.orders, "an acknowledged order is lost"
    assert balanced(folder)
    assert all(times <= 1 + crashes for times in kept.calls.values()), kept.calls
