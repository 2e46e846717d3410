"""Proves that kept runs reach the file, that the loop is never held for long, and that no disk can hurt the server."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio

from tests.trace import shop
from zerver.core import timeline as t
from zerver.core.timeline import Ending, Record, Timeline
from zerver.errors import DefinitionError, TraceError
from zerver.runtime import Result
from zerver.testing import cancel_sweep
from zerver.trace import format_timeline
from zerver.trace.keeping import writer
from zerver.trace.keeping.keep import Keeper, Keeping
from zerver.trace.keeping.store import make_store, open_store
from zerver.trace.keeping.writer import TraceWriter, check_place, open_trace_writer
from zerver.trace.recorder import open_recorder
from zerver.trace.recording import decode_run
from zerver.trace.summary import Filter


def all_of_them() -> Keeper:
    return Keeper(Keeping(sample=1.0), Random(1))


@asynccontextmanager
async def writing(path: Path, troubles: list[Exception] | None = None, **how: Any) -> AsyncIterator[TraceWriter]:
    told = [] if troubles is None else troubles
    async with open_trace_writer(path, keeper=all_of_them(), on_trouble=told.append, **how) as opened:
        yield opened
    if troubles is None:
        assert told == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does: real time, and so not by the clock of the test."""
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        await trio.to_thread.run_sync(time.sleep, 0.001)


async def runs() -> list[Result]:
    return [
        await shop.run(shop.CHECKOUT, {}),
        await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}),
        await shop.cancelled(),
        await shop.refused(),
        await shop.parked(),
    ]


def text(result: Result) -> str:
    """What happened; keys are shortened only where they begin with the run's id, and that was changed here."""
    return re.sub(r"key=\S+", "key", format_timeline(result.timeline))


def made(number: int, *, records: int = 2, reason: str = "") -> Result:
    """A run without steps, of so many records."""
    ending = Ending("done", reason=reason)
    read: list[Record] = [(t.READ, at, "checkout", None) for at in range(1, records - 1)]
    listed: list[Record] = [(t.RECEIVED, 0, "checkout", None), *read, (t.ENDED, records, "checkout", ending)]
    return Result(Timeline(f"req_{number:024x}", "checkout", "1", "acme", "default", listed), ending)


def renamed(result: Result, number: int) -> Result:
    return attrs.evolve(result, timeline=attrs.evolve(result.timeline, run_id=f"req_{number:024x}"))


async def test_runs_are_found_in_the_file_as_they_were(autojump_clock: object, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "traces.db"
    results = [renamed(result, at) for at, result in enumerate(await runs())]
    async with writing(path) as opened, open_recorder(listeners=[opened]) as recorder:
        for result in results:
            recorder.add(result)
    held = opened.statistics()
    assert (held.written, held.pending, held.failed, held.unencodable, held.overrun) == (5, 0, 0, 0, 0)
    with open_store(path) as store:
        for result in results:
            recording = store.find(result.run_id)
            assert recording is not None
            again = decode_run(recording)
            assert text(again) == text(result)
        assert {(it.status, it.kept) for it in store.search()} == {
            ("done", "sample"),
            ("failed", "trouble"),
            ("cancelled", "error"),
            ("refused", "refused"),
        }
        (sold_out,) = store.search(Filter(kept="trouble"))
        assert sold_out.cause.startswith("FAILED cart: sold out")
        assert sold_out.slow_step == "charge"
        assert abs(sold_out.began_unix_ns - time.time_ns()) < 3600e9 * 24


async def test_it_writes_while_the_server_runs(tmp_path: Path) -> None:
    async with writing(tmp_path / "traces.db") as opened:
        opened.take([made(1), made(2)])
        await until(lambda: opened.statistics().written == 2)
        opened.take([made(3)])
        await until(lambda: opened.statistics().written == 3)
        with open_store(opened.path) as store:
            assert len(store.search()) == 3


async def test_the_loop_is_given_back_after_each_slice(autojump_clock: object, tmp_path: Path) -> None:
    big = renamed(await shop.run(shop.CHECKOUT, {}), 1)
    turns = 0
    async with writing(tmp_path / "traces.db") as opened:
        opened.take([renamed(big, at) for at in range(400)])
        while opened._pending:
            await trio.sleep(writer.SLICE_SECONDS)
            turns += 1
    assert turns > 4  # 400 runs are many slices
    assert opened.statistics().written == 400


async def test_a_run_of_thousands_of_records_is_encoded_in_the_thread(tmp_path: Path) -> None:
    class Records(list[Record]):
        """Records that know in which threads they were read."""

        def __iter__(self) -> Iterator[Record]:
            threads.add(threading.current_thread().name)
            return super().__iter__()

    threads: set[str] = set()
    read_in = {}
    for records in (writer.LONG, writer.LONG - 1):
        result = made(records, records=records)
        result = attrs.evolve(result, timeline=attrs.evolve(result.timeline, records=Records(result.timeline.records)))
        async with writing(tmp_path / "traces.db") as opened:
            opened.take([result])  # the keeper looks at the kinds of records, here
            threads.clear()
        read_in[records] = set(threads)
        assert opened.statistics().written == 1
    assert read_in == {writer.LONG: {f"zerver trace {opened.path}"}, writer.LONG - 1: {"MainThread"}}


async def test_what_is_too_much_is_dropped_and_counted(
    autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST_PENDING", 5)
    async with writing(tmp_path / "traces.db") as opened:
        opened.take([made(at) for at in range(8)])
        assert opened.statistics().overrun == 3
    assert opened.statistics().written == 5


async def test_only_what_the_keeper_keeps_is_written(autojump_clock: object, tmp_path: Path) -> None:
    keeper = Keeper(Keeping(sample=0.0, floor=1.0), Random(1))
    async with open_trace_writer(tmp_path / "traces.db", keeper=keeper) as opened:
        opened.take([made(at) for at in range(10)])
    held = opened.statistics()
    assert (held.written, held.keeper.seen, held.keeper.passed["sample"]) == (1, 10, 9)


async def test_what_is_old_and_what_is_too_much_goes(autojump_clock: object, tmp_path: Path) -> None:
    async with writing(tmp_path / "traces.db", most_age=0.001) as opened:
        opened.take([made(at) for at in range(10)])
        await until(lambda: opened.statistics().written == 10)
        await trio.to_thread.run_sync(time.sleep, 0.002)
        opened.take([made(10)])
    with open_store(opened.path) as store:
        assert len(store.search()) <= 1


async def test_a_value_that_cannot_be_encoded_costs_its_run_and_no_other(tmp_path: Path) -> None:
    bad = made(1)
    bad.timeline.records[-1] = (t.SETTLED, 9, "no call", None)  # such as there are none
    troubles: list[Exception] = []
    async with writing(tmp_path / "traces.db", troubles) as opened:
        opened.take([bad, bad, made(2)])
    held = opened.statistics()
    assert (held.written, held.unencodable) == (1, 2)
    assert len(troubles) == 1  # once


# ---- files that are not as they should be ---------------------------------------------------


async def test_a_file_of_somebody_else_is_reported_once_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        db.execute("create table orders (id text)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(TraceError, match="database of another program"):
        check_place(path)
    troubles: list[Exception] = []
    async with writing(path, troubles) as opened:
        for at in range(3):
            opened.take([made(at)])
            await until(lambda at=at: opened.statistics().failed == at + 1)
        assert "database of another program" in opened.statistics().trouble
    assert len(troubles) == 1
    assert path.read_bytes() == before


async def test_writing_goes_on_once_the_wrong_file_is_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.0)
    path = tmp_path / "traces.db"
    path.write_text("notes")
    troubles: list[Exception] = []
    async with writing(path, troubles) as opened:
        opened.take([made(1)])
        await until(lambda: opened.statistics().failed == 1)
        path.rename(tmp_path / "notes.txt")
        opened.take([made(2)])
        await until(lambda: opened.statistics().written == 1)
        assert opened.statistics().trouble == ""
    assert len(troubles) == 1


async def test_a_deleted_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    async with writing(path) as opened:
        opened.take([made(1)])
        await until(lambda: opened.statistics().written == 1)
        path.unlink()
        opened.take([made(2)])
        await until(lambda: opened.statistics().written == 2)
    with open_store(path) as store:
        assert len(store.search()) == 1


def test_a_device_is_refused_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    path.symlink_to("/dev/null")
    with pytest.raises(TraceError, match="is no trace file, and was left as it is"):
        check_place(path)
    with pytest.raises(TraceError, match="is no trace file, and was left as it is"):
        make_store(path)
    assert path.readlink() == Path("/dev/null")


async def test_a_damaged_file_ends_the_writing_and_not_the_server(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with make_store(path) as store:
        store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(byte ^ 0x5A for byte in content[4096:])
    path.write_bytes(content)
    check_place(path)  # it was ours
    troubles: list[Exception] = []
    async with writing(path, troubles) as opened:
        opened.take([made(1)])
        await until(lambda: opened.statistics().failed == 1)
        opened.take([made(2)])
        await until(lambda: opened.statistics().failed == 2)
    assert len(troubles) == 1
    assert "is damaged" in str(troubles[0])


async def test_a_full_disk_is_reported_once_and_writing_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    troubles: list[Exception] = []
    async with writing(path, troubles) as opened:
        opened.take([made(1)])
        await until(lambda: opened.statistics().written == 1)
        db = opened._scribe._store._db  # type: ignore[union-attr] # it has written
        (pages,) = db.execute("pragma page_count").fetchone()
        db.execute(f"pragma max_page_count = {pages}")
        opened.take([made(at, reason=os.urandom(20_000).hex()) for at in range(2, 12)])
        await until(lambda: opened.statistics().failed > 0)
        await until(lambda: opened.statistics().pending == 0)
        db.execute("pragma max_page_count = 1000000")
        opened.take([made(20)])
        await until(lambda: opened.statistics().trouble == "")
    assert [str(trouble) for trouble in troubles] == [f"the disk of {path} is full"]
    with open_store(path) as store:
        assert store.find(made(20).run_id) is not None


async def test_no_store_where_none_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    troubles: list[Exception] = []
    async with writing(tmp_path / "file" / "traces.db", troubles) as opened:
        opened.take([made(1)])
    assert opened.statistics().failed == 1
    assert "cannot make the trace file" in str(troubles[0])


async def test_whoever_is_told_of_troubles_may_have_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def on_trouble(trouble: Exception) -> None:
        raise OSError("the log is full") from trouble

    (tmp_path / "file").write_text("x")
    async with open_trace_writer(tmp_path / "file", on_trouble=on_trouble) as opened:
        opened.take([made(1)])
    assert "on_trouble has a defect" in caplog.text


async def test_a_trouble_is_logged_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    async with open_trace_writer(tmp_path / "file") as opened:
        opened.take([made(1)])
    assert "traces are not kept: " in caplog.text


@pytest.mark.parametrize("how", [{"most_bytes": 1}, {"most_age": 0.0}, {"most_age": float("nan")}])
async def test_bounds_that_hold_nothing_are_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(how))):
        async with open_trace_writer(tmp_path / "traces.db", **how):
            pass
    assert os.listdir(tmp_path) == []


# ---- cancellation ---------------------------------------------------------------------------


async def test_what_was_taken_is_written_even_when_cancelled(autojump_clock: object, tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with writing(tmp_path / "traces.db") as opened:
            opened.take([made(1), made(2)])
            scope.cancel()
            await trio.sleep_forever()
    assert opened.statistics().written == 2


def test_however_it_is_cancelled_what_was_taken_is_written(tmp_path: Path) -> None:
    taken: list[TraceWriter] = []
    count: list[int] = []

    async def program() -> None:
        taken.clear()
        count.clear()
        async with open_trace_writer(tmp_path / "traces.db", keeper=all_of_them()) as opened:
            taken.append(opened)
            for at in range(3):
                count.append(at)
                opened.take([made(at)])
                await trio.sleep(0.003)

    def check() -> None:
        assert not taken or taken[0].statistics().written == len(count)

    cancel_sweep(program, check=check, clock=None, max_points=60)  # the real clock: there is a thread to wait for
