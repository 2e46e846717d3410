"""The orders: what they promise holds over processes. Each block of `open_shop` is a process of its own, as far as the
shop, its journal and its jobs can tell."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from examples.orders.app import LARGE, Approval, Order, app, approve, buy
from zerver import Fail, Pause
from zerver.errors import InvalidData
from zerver.jobs import enqueue, open_worker
from zerver.journal import open_sqlite_journal
from zerver.runtime import Result, Runtime, open_runtime


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the shop keeps its files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@attrs.define(eq=False)
class Shop:
    """A process. ended: results of runs, as it heard of them."""

    runtime: Runtime
    ended: list[Result]
    news: trio.Event

    async def wait_for(self, flow: str) -> Result:
        """The first run of a flow that has ended here."""
        with trio.fail_after(30):
            while True:
                for result in self.ended:
                    if result.timeline.flow == flow:
                        return result
                await self.news.wait()


@asynccontextmanager
async def open_shop() -> AsyncGenerator[Shop, None]:
    shop: Shop | None = None

    def hear(result: Result) -> None:
        if shop is not None:
            shop.ended.append(result)
            shop.news.set()
            shop.news = trio.Event()

    async with (
        open_sqlite_journal("orders.journal") as journal,
        open_runtime(app, journal=journal, observers=[hear]) as runtime,
    ):
        shop = Shop(runtime, [], trio.Event())
        async with open_worker(runtime):
            yield shop


def rows(question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect("orders.db")) as database:
        return database.execute(question).fetchall()


async def test_a_small_order_is_placed_at_once_and_confirmed() -> None:
    async with open_shop() as shop:
        result = await shop.runtime.run(buy, {"customer": "ada", "cents": 900})
        assert result.status == "done"
        await shop.wait_for("send_mail")
    ((order, customer, cents, approved),) = rows("select * from orders")
    assert (customer, cents, approved) == ("ada", 900, "the shop")
    assert rows("select recipient, text from mails") == [("ada", f"order {order} is on its way")]


async def test_a_large_one_waits_and_is_approved_of_in_another_process() -> None:
    async with open_shop() as first:
        parked = await first.runtime.run(buy, {"customer": "ada", "cents": LARGE})
        assert (parked.status, rows("select * from orders")) == ("parked", [])
    async with open_shop() as second:
        assert await second.runtime.signal(parked.run_id, "approval", {"by": "Ann"})
        assert (await second.wait_for("buy")).status == "done"
        await second.wait_for("send_mail")
        assert not await second.runtime.signal(parked.run_id, "approval", {"by": "Bob"}), "it was approved of twice"
    assert rows("select cents, approved from orders") == [(LARGE, "Ann")]
    assert rows("select cents, refunded from charges") == [(LARGE, 0)]
    assert rows("select count(*) from mails") == [(1,)]


def test_one_that_nobody_approves_of_is_refused() -> None:
    asked = approve(Order("ada", LARGE), "a charge")
    assert isinstance(asked, Pause)
    assert isinstance(asked.expired, Fail)
    assert approve(Order("ada", LARGE - 1), "a charge") == Approval("the shop")


async def test_a_value_that_is_no_approval_is_refused_and_a_cancelled_order_is_undone() -> None:
    async with open_shop() as shop:
        parked = await shop.runtime.run(buy, {"customer": "ada", "cents": LARGE})
        with pytest.raises(InvalidData, match="by"):
            await shop.runtime.signal(parked.run_id, "approval", {"nobody": 1})
        assert await shop.runtime.cancel(parked.run_id, "ada has called")
        assert (await shop.wait_for("buy")).status == "cancelled"
    assert rows("select refunded from charges") == [(1,)]
    assert rows("select * from orders") == []


async def test_the_report_tells_the_owner() -> None:
    async with open_shop() as shop:
        await shop.runtime.run(buy, {"customer": "ada", "cents": 900})
        await shop.wait_for("send_mail")
        await enqueue(shop.runtime, "report")
        await shop.wait_for("report")
        with trio.fail_after(30):
            while len(rows("select * from mails")) < 2:
                await shop.news.wait()
    assert rows("select text from mails where recipient = 'owner@shop.example'") == [("1 orders, 900 cents",)]
