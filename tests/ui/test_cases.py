"""Cases on the page: which write is in doubt is told, veiled; it is tried again, or resolved with a reason."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from tests.ui.looking import Browser, open_browser
from tests.ui.workshop import SECRET, Workshop, settled
from zerver.core.codec import decode_json
from zerver.errors import JournalUnavailable
from zerver.jobs import enqueue, open_worker
from zerver.runtime import open_runtime
from zerver.trace.inert import MASK

CANARY = "<img src=x onerror=alert(1)>"


@attrs.frozen(eq=False)
class World:
    shop: Workshop
    browser: Browser

    async def unresolved(self, name: str = "7", tenant: str = "default") -> str:
        """A run whose refund was refused; its id."""
        runtime = self.browser.client.runtime
        prepared = runtime.prepare(self.shop.order)

        async def read() -> list[object]:
            return [name]

        result = await runtime.execute(prepared, read, [], tenant=tenant, label="POST /orders/{id}")
        assert result.unresolved
        return result.run_id

    async def cases(self) -> list[Any]:
        return list((await self.browser.json("cases"))["cases"])

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        reply = await self.browser.post(path, body)
        return reply.status, decode_json(reply.body, Any)


@asynccontextmanager
async def a_world() -> AsyncGenerator[World, None]:
    shop = Workshop()
    async with shop.open_journal() as journal, open_browser(app=shop.app, journal=journal) as browser:
        await browser.enter()
        yield World(shop, browser)


async def test_a_case_names_the_write_and_its_key(autojump_clock: object) -> None:
    async with a_world() as world:
        assert await world.browser.json("cases") == {"place": "memory", "cases": [], "after": None}
        run_id = await world.unresolved("7", tenant="acme")
        (case,) = await world.cases()
        assert (case["run"], case["flow"], case["tenant"], case["state"]) == (run_id, "order", "acme", "unresolved")
        assert case["label"] == "POST /orders/{id}"
        assert case["writes"] == [
            {
                "step": "order.pay",
                "kind": "bank.charge",
                "text": "bank.charge('7')",
                "state": "happened",
                "key": f"{run_id}:order.pay:1",
                "why": "its undo failed: the bank is closed for charge of 7",
            }
        ]


async def test_cases_come_in_pages_the_oldest_first(autojump_clock: object) -> None:
    async with a_world() as world:
        ids = [await world.unresolved(str(n)) for n in range(5)]
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = await world.browser.json(f"cases?limit=2&after={after}")
            seen += [case["run"] for case in page["cases"]]
            after = page["after"]
        assert seen == ids


async def test_it_is_tried_again_until_it_comes_right(autojump_clock: object) -> None:
    async with a_world() as world:
        run_id = await world.unresolved()
        assert await world.post(f"cases/{run_id}/retry", {}) == (200, {"status": "failed", "unresolved": 1})
        assert len(await world.cases()) == 1
        world.shop.away = False
        assert await world.post(f"cases/{run_id}/retry", {}) == (200, {"status": "failed", "unresolved": 0})
        assert await world.cases() == []
        status, told = await world.post(f"cases/{run_id}/retry", {})
        assert (status, told["detail"]) == (409, f"run {run_id} needs nobody: it is failed")
        assert (await world.post("cases/req_nothing/retry", {}))[0] == 409


async def test_somebody_resolves_it_with_a_reason(autojump_clock: object) -> None:
    async with a_world() as world:
        run_id = await world.unresolved()
        for reason in ("", "  ", "\0", "x" * 3000):
            assert (await world.post(f"cases/{run_id}/resolve", {"reason": reason}))[0] == 400
        assert (await world.post(f"cases/{run_id}/resolve", {}))[0] == 400
        assert len(await world.cases()) == 1
        told = {"run": run_id, "reason": "refunded by hand", "by": "ann"}
        assert await world.post(f"cases/{run_id}/resolve", {"reason": " refunded by hand ", "by": "ann"}) == (200, told)
        assert await world.cases() == []
        assert (await world.post(f"cases/{run_id}/resolve", {"reason": "again"}))[0] == 409
        world.browser.page.desk._ring = None  # as after a restart
        header = (await world.browser.json(f"runs/{run_id}"))["header"]
        assert (header["source"], header["replayable"]) == ("journal", False)
        assert header["journal"] == {
            "status": "resolved", "aside": None, "reason": "ann: refunded by hand", "waits": None
        }  # fmt: skip


async def test_who_says_no_name_is_somebody_at_the_page(autojump_clock: object) -> None:
    async with a_world() as world:
        run_id = await world.unresolved()
        _, told = await world.post(f"cases/{run_id}/resolve", {"reason": "looked"})
        assert told["by"] == "somebody at the live page"


async def test_a_run_that_no_code_can_carry_on_is_stuck(autojump_clock: object) -> None:
    shop = Workshop()
    async with shop.open_journal() as journal, open_runtime(shop.app, journal=journal) as runtime:
        result = await runtime.run(shop.contract)
        assert result.status == "parked"
        assert await runtime.clerk.journal.set_aside(result.run_id, 1, f"no flow {CANARY} here\n and there") is None  # type: ignore[union-attr, func-returns-value] # it has a journal
    async with shop.open_journal() as journal, open_browser(app=shop.app, journal=journal) as browser:
        await browser.enter()
        (case,) = (await browser.json("cases"))["cases"]
        assert (case["state"], case["run"]) == ("stuck", result.run_id)
        assert case["why"] == f"no flow {CANARY} here\\n and there"
        assert (await browser.json(f"runs/{result.run_id}"))["header"]["journal"]["aside"] == case["why"]


async def test_no_secret_is_told_of_a_case(autojump_clock: object) -> None:
    async with a_world() as world:
        world.browser.page.desk.hidden = type(world.browser.page.desk.hidden)(["id"])
        run_id = await world.unresolved(SECRET)
        for path in ("cases", f"runs/{run_id}"):
            text = (await world.browser.get(f"/_zerver/api/{path}")).text
            assert SECRET not in text
            assert MASK in text


async def test_texts_of_a_case_stay_on_their_line(autojump_clock: object) -> None:
    async with a_world() as world:
        nasty = f"{CANARY}\n\x1b[31m"
        await world.unresolved(nasty, tenant=nasty)
        (case,) = await world.cases()
        for shown in (case["tenant"], case["writes"][0]["text"], case["writes"][0]["why"]):
            assert CANARY in shown
            assert shown.isprintable()


async def test_a_journal_that_is_away_is_said(autojump_clock: object) -> None:
    async with a_world() as world:
        journal = world.browser.client.runtime.clerk.journal  # type: ignore[union-attr] # it has one

        async def away(*_: object) -> None:
            raise JournalUnavailable("the disk is full")

        journal.list_runs = journal.tallies = away  # type: ignore[method-assign, assignment] # a disk that is full
        reply = await world.browser.get("/_zerver/api/cases")
        assert (reply.status, decode_json(reply.body, Any)["detail"]) == (503, "the disk is full")
        assert (await world.browser.json("overview"))["journal"] is None


# ---- parked runs ----------------------------------------------------------------------------


async def test_a_parked_run_is_shown_from_the_journal(autojump_clock: object) -> None:
    async with a_world() as world:
        runtime = world.browser.client.runtime
        async with open_worker(runtime, seed=1):
            job_id = await enqueue(runtime, world.shop.contract)
            await settled(runtime, job_id, "parked")
            told = await world.browser.json(f"runs/job_{job_id}.1")
            header = told["header"]
            assert (header["status"], header["source"], header["under_way"]) == ("parked", "journal", True)
            (waits,) = header["journal"]["waits"]
            assert (waits["signal"], waits["came"]) == ("signed", False)
            assert [span["kind"] for span in told["spans"]["items"]].count("park") == 1
            (job,) = (await world.browser.json("jobs"))["jobs"]
            assert (job["state"], job["run"]) == ("parked", f"job_{job_id}.1")
            assert (await world.browser.json(f"jobs/{job_id}"))["verbs"] == ["cancel"]
            assert await runtime.signal(f"job_{job_id}.1", "signed", "Ada")
            await settled(runtime, job_id, "done")
            told = await world.browser.json(f"runs/job_{job_id}.1")
            assert (told["header"]["status"], told["header"]["source"]) == ("done", "ring")
            (park,) = [span for span in told["spans"]["items"] if span["kind"] == "park"]
            assert (park["status"], park["ended_ns"] is None) == ("ok", False)
            assert {node["status"] for node in told["graph"]["nodes"] if node["step"]} == {"ok"}


async def test_the_overview_counts_the_runs_of_the_journal(autojump_clock: object) -> None:
    async with a_world() as world:
        runtime = world.browser.client.runtime
        await world.unresolved()
        await runtime.run(world.shop.contract)
        journal = (await world.browser.json("overview"))["journal"]
        assert journal["place"] == "memory"
        assert (journal["unfinished"], journal["by_status"]) == (1, {"unresolved": 1})
        assert 0 < journal["parked_due_ns"] <= 7 * 86_400 * 10**9


async def test_without_a_journal_there_is_nothing_of_it() -> None:
    async with open_browser() as browser:
        await browser.enter()
        assert (await browser.json("overview"))["journal"] is None
        for path in ("cases/x/retry", "cases/x/resolve"):
            assert (await browser.post(path, {"reason": "x"})).status == 404


@pytest.mark.parametrize("said", ["req_000000000000000000000000", "job_x.1"])
async def test_a_run_that_the_journal_has_not_is_not_there(said: str, autojump_clock: object) -> None:
    async with a_world() as world:
        assert (await world.browser.get(f"/_zerver/api/runs/{said}")).status == 404
