"""Two real processes with one file of receipts: a request is carried out once, whoever gets it, and a killed one's key
is free again.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from zerver import App, Done, Flow, step
from zerver.errors import DefinitionError
from zerver.http.claims import check_shared
from zerver.journal.receipts import sqlite_receipts

SERVER = """
import sys, time
from pathlib import Path
from typing import Annotated

import trio

from zerver import App, Done, Flow, effect, step
from zerver.http import Body, json
from zerver.journal.receipts import open_sqlite_receipts
from zerver.runtime.receipts import receipts_capability
from zerver.serve import serve

folder, ahead = Path(sys.argv[1]), float(sys.argv[2])

@effect(kind="bank.pay", access="write")
async def pay(key: str) -> str:
    print("begun", flush=True)
    while (folder / f"{key}.gate").exists():
        await trio.sleep(0.005)
    with open(folder / "paid", "a") as file:
        file.write(key + "\\n")
    return key

@step
async def work(body: Annotated[dict[str, str], Body()]) -> Done:
    return Done(json({"paid": await pay(body["key"])}, 201))

def open_receipts():
    return open_sqlite_receipts(folder / "receipts.db", tick=lambda: time.monotonic() + ahead)

app = App(capabilities=[receipts_capability(open_receipts)])
app.route("POST", "/pay", Flow("pay", [work], idempotency="required"))

async def main():
    async with trio.open_nursery() as nursery:
        serving = await nursery.start(serve, app)
        print(serving.addresses[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


class Worker:
    """A process that serves. Its own clock of leases may be ahead of the others' by some seconds."""

    def __init__(self, folder: Path, ahead: float) -> None:
        command = [sys.executable, "-c", SERVER, str(folder), str(ahead)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.place = self.process.stdout.readline().strip().removeprefix("http://")

    def pay(self, key: str) -> tuple[int, bytes, bool]:
        """Status and body, and whether it was given before."""
        connection = http.client.HTTPConnection(self.place, timeout=60)
        try:
            fields = {"Idempotency-Key": key, "Content-Type": "application/json"}
            connection.request("POST", "/pay", json.dumps({"key": key}), fields)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Idempotent-Replayed") == "true"
        finally:
            connection.close()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(folder: Path, *ahead: float) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        started = []
        for seconds in ahead:
            started.append(Worker(folder, seconds))
            stack.callback(started[-1].end)
        yield started


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_it_is_carried_out_once_whichever_of_them_is_asked(tmp_path: Path) -> None:
    with workers(tmp_path, 0, 0) as (one, two), ThreadPoolExecutor(4) as threads:
        for number in range(10):
            key, body = f"k{number}", b'{"paid":"k%d"}' % number
            said = list(threads.map(lambda worker, key=key: worker.pay(key), (one, two, one, two)))
            assert {(status, got) for status, got, _ in said if status != 409} == {(201, body)}
            assert {one.pay(key), two.pay(key)} == {(201, body, True)}
    assert lines(tmp_path / "paid") == [f"k{number}" for number in range(10)]


def test_the_key_of_a_killed_process_is_free_when_its_lease_is_over(tmp_path: Path) -> None:
    gate = tmp_path / "k.gate"
    gate.touch()
    with workers(tmp_path, 0, 0, 31) as (one, two, late), ThreadPoolExecutor(1) as threads:
        asking = threads.submit(one.pay, "k")
        assert one.process.stdout is not None
        assert one.process.stdout.readline() == "begun\n"
        one.process.kill()
        assert isinstance(asking.exception(), ConnectionError | http.client.HTTPException)
        assert two.pay("k")[0] == 409
        gate.unlink()
        assert late.pay("k") == (201, b'{"paid":"k"}', False)
        assert two.pay("k") == (201, b'{"paid":"k"}', True)
    assert lines(tmp_path / "paid") == ["k"]


def test_workers_must_share_their_receipts() -> None:
    @step
    def nothing() -> Done:
        return Done()

    for capabilities, is_shared in (([], False), ([sqlite_receipts("r.db")], True)):
        app = App(capabilities=capabilities)
        app.route("POST", "/pay", Flow("pay", [nothing], idempotency="required"))
        if is_shared:
            check_shared(app)
        else:
            with pytest.raises(DefinitionError, match="sqlite_receipts"):
                check_shared(app)
