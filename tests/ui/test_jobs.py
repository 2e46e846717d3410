"""Jobs on the page: shown veiled, searched and paged; changed one by one, or many when their number is said."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from tests.ui.looking import TOKEN, Browser, open_browser
from tests.ui.workshop import SECRET, Mail, Workshop, settled
from zerver import App, Done, Flow, step
from zerver.core.codec import decode_json
from zerver.core.orders import Order
from zerver.core.plan import compile_plan
from zerver.jobs import JobDesk, enqueue, open_worker
from zerver.jobs.memory import open_memory_jobs
from zerver.jobs.port import STATES, Job, Wanted
from zerver.runtime import Runtime
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.inert import MASK
from zerver.ui.jobs import MEANT, meant
from zerver.ui.jobveil import JobVeil

DAY = 86_400.0
CANARY = "<img src=x onerror=alert(1)>"


@attrs.frozen(eq=False)
class World:
    """A workshop, and a browser that has opened its page."""

    shop: Workshop
    browser: Browser

    @property
    def runtime(self) -> Runtime:
        return self.browser.client.runtime

    @property
    def store(self) -> Any:
        return self.runtime.resources[JobDesk].store

    async def order(self, flow: Flow, body: object = None, state: str = "", **options: Any) -> str:
        job_id = await enqueue(self.runtime, flow, body, **options)
        if state:
            await settled(self.runtime, job_id, state)
        return job_id

    async def get(self, path: str) -> Any:
        return await self.browser.json(path)

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        reply = await self.browser.post(path, body, **headers)
        return reply.status, decode_json(reply.body, Any)

    async def states(self) -> dict[str, str]:
        return {job.job_id: job.state for job in await self.store.search(Wanted(), 1000)}


@asynccontextmanager
async def a_world(*, works: bool = True) -> AsyncGenerator[World, None]:
    shop = Workshop()
    async with shop.open_journal() as journal, open_browser(app=shop.app, journal=journal) as browser:
        await browser.enter()
        if not works:
            yield World(shop, browser)
            return
        async with open_worker(browser.client.runtime, seed=1):
            yield World(shop, browser)


# ---- looking --------------------------------------------------------------------------------


async def test_queues_are_told_with_their_counts_and_limits(autojump_clock: object) -> None:
    async with a_world() as world:
        await world.order(world.shop.letter, Mail(how="refused"), "dead")
        for _ in range(2):
            await world.order(world.shop.letter, Mail(), delay=DAY)
        legal, mail = (await world.get("queues"))["queues"]
        assert (legal["name"], legal["paused"], set(legal["counts"].values())) == ("legal", False, {0})
        assert (mail["name"], mail["limit"], mail["per_tenant"], mail["oldest_unix_ms"]) == ("mail", 3, 2, None)
        assert list(mail["counts"]) == list(STATES)
        assert {state: n for state, n in mail["counts"].items() if n} == {"dead": 1, "scheduled": 2}


async def test_the_oldest_that_could_begin_tells_since_when(autojump_clock: object) -> None:
    async with a_world(works=False) as world:
        await world.order(world.shop.letter, Mail())
        _, mail = (await world.get("queues"))["queues"]
        (job,) = (await world.get("jobs"))["jobs"]
        assert mail["oldest_unix_ms"] == job["at_unix_ms"]
        assert (job["state"], job["began_unix_ms"], job["run"], job["progress"]) == ("available", None, None, None)


async def test_a_job_is_told_with_its_runs_and_what_it_came_to(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail("bob", "broken"), "dead", tenant="acme")
        job = await world.get(f"jobs/{job_id}")
        assert (job["state"], job["attempt"], job["attempts"], job["tenant"]) == ("dead", 2, 2, "acme")
        assert job["error"] == "ZeroDivisionError: the letter to bob is torn"
        assert job["body"]["value"] == {"to": "bob", "how": "broken", "x_api_key": MASK}
        assert (job["result"], job["why"], job["here"]) == (None, None, True)
        assert job["verbs"] == ["retry", "delete"]
        assert [run["id"] for run in job["runs"]] == [f"job_{job_id}.2", f"job_{job_id}.1"]
        assert [run["summary"]["status"] for run in job["runs"]] == ["defect", "defect"]
        run = await world.get(f"runs/{job['run']}")
        assert run["header"]["label"] == "job letter"
        assert [row["text"] for row in run["rows"]["items"][:1]] != []
        done = await world.get(f"jobs/{await world.order(world.shop.letter, Mail('eve'), 'done')}")
        assert done["result"]["value"] == {"sent": "sent to eve", "letter": "dear eve", "x_api_key": MASK}
        assert done["verbs"] == ["delete"]


async def test_it_says_why_it_has_not_begun(autojump_clock: object) -> None:
    async with a_world(works=False) as world:
        job_id = await world.order(world.shop.letter, Mail())
        assert "no worker was ever seen" in (await world.get(f"jobs/{job_id}"))["why"]
        await world.store.pause("mail", True)
        assert (await world.get(f"jobs/{job_id}"))["why"] == "queue mail is paused"


async def test_the_tenth_run_of_a_job_is_not_its_first(autojump_clock: object) -> None:
    async with a_world(works=False) as world:
        browser = world.browser
        prepared = world.runtime.prepare(world.shop.letter)

        async def read() -> list[object]:
            await trio.lowlevel.checkpoint()
            return [Mail()]

        await world.runtime.execute(prepared, read, [], run_id="job_abcdef.10")
        browser.recorder.flush()
        assert (await world.get("runs/job_abcdef.10"))["header"]["id"] == "job_abcdef.10"
        assert (await browser.get("/_zerver/api/runs/job_abcdef.1")).status == 404


async def test_progress_is_told_while_it_runs(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail("zoe", "waits"))
        with trio.fail_after(30):
            while (await world.get(f"jobs/{job_id}"))["progress"] is None:
                await trio.sleep(0.005)
        job = await world.get(f"jobs/{job_id}")
        assert job["progress"] == {"done": 3, "total": 10, "note": "writing to zoe"}
        assert job["verbs"] == ["cancel"]
        assert [run["summary"]["source"] for run in job["runs"]] == ["live"]
        world.shop.gate.set()
        await settled(world.runtime, job_id, "done")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "edcba"),
        ("?state=dead", "b"),
        ("?state=dead,done", "ba"),
        ("?flow=pins", "e"),
        ("?queue=mail&state=scheduled", "d"),
        ("?queue=none", ""),
        ("?tenant=acme", "c"),
        ("?text=reader:%20nobody", ""),
        ("?text=not_found", "b"),
    ],
)
async def test_a_filter_finds_the_newest_first(query: str, found: str, autojump_clock: object) -> None:
    async with a_world() as world:
        letter = world.shop.letter
        ids = {
            "a": await world.order(letter, Mail(), "done"),
            "b": await world.order(letter, Mail("nobody", "refused"), "dead"),
            "c": await world.order(world.shop.contract, None, "parked", tenant="acme"),
            "d": await world.order(letter, Mail(), delay=DAY),
            "e": await world.order(world.shop.pins, {"name": "x", "pin": "0000-1111"}, "done"),
        }
        names = {job_id: name for name, job_id in ids.items()}
        listed = await world.get(f"jobs{query}")
        if query == "?state=dead,done":
            listed["jobs"] = [job for job in listed["jobs"] if names[job["id"]] != "e"]
        assert "".join(names[job["id"]] for job in listed["jobs"]) == found
        (one,) = (await world.get(f"jobs?id={ids['a'][:10]}"))["jobs"]
        assert one["id"] == ids["a"]


async def test_a_long_list_comes_in_pages(autojump_clock: object) -> None:
    async with a_world(works=False) as world:
        ids = [await world.order(world.shop.letter, Mail(str(n))) for n in range(7)]
        seen: list[str] = []
        before: int | None = 0
        while before is not None:
            page = await world.get(f"jobs?limit=3&before={before}")
            seen += [job["id"] for job in page["jobs"]]
            before = page["before"]
        assert seen == ids[::-1]


async def test_what_makes_no_sense_is_refused(autojump_clock: object) -> None:
    async with a_world() as world:
        for path, status in {
            "jobs?state=broken": 400,
            "jobs?limit=x": 400,
            "jobs?text=%00": 400,
            "jobs/nothing": 404,
            "jobs/%00": 400,
            "matching?verb=burn": 400,
        }.items():
            assert (await world.browser.get(f"/_zerver/api/{path}")).status == status, path
        assert (await world.post("queues/none/pause", {"paused": True}))[0] == 404
        assert (await world.post("queues/mail/pause", {"paused": "very"}))[0] == 400
        assert (await world.post("matching", {"verb": "delete", "wanted": {"status": "dead"}, "count": 0}))[0] == 400
        assert (await world.post("matching", {"verb": "delete", "wanted": {"text": "\0"}, "count": 0}))[0] == 400
        assert (await world.post("jobs/nothing/retry", {}))[0] == 404


async def test_an_app_without_jobs_has_nothing_of_them(autojump_clock: object) -> None:
    @step
    def nothing() -> Done:
        return Done()

    bare = App("bare")
    bare.route("GET", "/", Flow("bare", [nothing]))
    async with open_browser(app=bare) as browser:
        await browser.enter()
        session = await browser.json("session")
        assert (session["jobs"], session["journal"]) == (False, False)
        for path in ("queues", "jobs", "jobs/x", "matching?verb=retry", "cases"):
            assert (await browser.get(f"/_zerver/api/{path}")).status == 404


async def test_an_app_with_jobs_and_a_journal_says_so(autojump_clock: object) -> None:
    async with a_world() as world:
        session = await world.get("session")
        assert (session["jobs"], session["journal"]) == (True, True)
        flows = {flow["name"]: flow["routes"] for flow in (await world.get("flows"))["flows"]}
        assert flows["letter"] == ["job letter"]
        graph = (await world.get("flows/letter/graph"))["graph"]
        assert [node["step"] for node in graph["nodes"] if node["step"]] == ["letter.write", "letter.send"]


# ---- doing ----------------------------------------------------------------------------------


async def test_one_job_is_retried_cancelled_and_deleted(autojump_clock: object) -> None:
    async with a_world() as world:
        dead = await world.order(world.shop.letter, Mail("x", "refused"), "dead")
        await world.store.pause("mail", True)
        assert await world.post(f"jobs/{dead}/retry", {}) == (200, {"changed": 1})
        assert (await world.states())[dead] == "available"
        status, told = await world.post(f"jobs/{dead}/delete", {})
        assert (status, told["detail"]) == (409, "it is available: delete does nothing to it")
        assert (await world.post(f"jobs/{dead}/cancel", {"reason": " a mistake "}))[0] == 200
        job = await world.get(f"jobs/{dead}")
        assert (job["state"], job["error"]) == ("cancelled", "a mistake")
        assert (await world.post(f"jobs/{dead}/cancel", {}))[0] == 409
        assert (await world.post(f"jobs/{dead}/delete", {}))[0] == 200
        assert await world.states() == {}


async def test_a_running_job_that_is_cancelled_ends(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail("x", "waits"), "running")
        assert (await world.post(f"jobs/{job_id}/cancel", {}))[0] == 200
        await settled(world.runtime, job_id, "cancelled")
        assert (await world.get(f"jobs/{job_id}"))["runs"][0]["summary"]["status"] == "cancelled"


async def test_who_gives_no_reason_has_cancelled_it_on_the_page(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail(), delay=DAY)
        assert (await world.post(f"jobs/{job_id}/cancel", {"reason": " "}))[0] == 200
        assert (await world.get(f"jobs/{job_id}"))["error"] == "somebody cancelled it on the live page"


async def test_a_queue_is_paused_and_goes_on(autojump_clock: object) -> None:
    async with a_world() as world:
        status, told = await world.post("queues/mail/pause", {"paused": True})
        assert (status, [one["paused"] for one in told["queues"]]) == (200, [False, True])
        job_id = await world.order(world.shop.letter, Mail())
        await trio.sleep(0.01)
        assert (await world.states())[job_id] == "available"
        await world.post("queues/mail/pause", {"paused": False})
        await settled(world.runtime, job_id, "done")


async def test_many_are_changed_when_their_number_is_said(autojump_clock: object) -> None:
    async with a_world() as world:
        dead = [await world.order(world.shop.letter, Mail(f"r{n}", "refused"), "dead") for n in range(3)]
        await world.order(world.shop.letter, Mail(), "done")
        await world.store.pause("mail", True)
        assert await world.get("matching?verb=retry&state=dead") == {"count": 3, "more": False}
        assert await world.get("matching?verb=retry&text=r1") == {"count": 1, "more": False}
        assert await world.get("matching?verb=cancel&state=dead") == {"count": 0, "more": False}
        assert await world.get("matching?verb=delete") == {"count": 4, "more": False}
        asked = {"verb": "retry", "wanted": {"state": "dead"}, "count": 2}
        status, told = await world.post("matching", asked)
        assert (status, told["detail"]) == (409, "there are 3 by now, and not 2: look again")
        assert set((await world.states()).values()) == {"dead", "done"}
        assert await world.post("matching", {**asked, "count": 3}) == (200, {"changed": 3})
        states = await world.states()
        assert [states[job_id] for job_id in dead] == ["available"] * 3
        cancel = {"verb": "cancel", "wanted": {"queue": "mail"}, "count": 3, "reason": "no more"}
        assert (await world.post("matching", cancel))[1] == {"changed": 3}
        assert (await world.post("matching", {"verb": "delete", "wanted": {"flow": "pins"}, "count": 0}))[1] == {
            "changed": 0
        }
        assert len(await world.states()) == 4


async def test_what_is_beyond_counting_is_said_to_be_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr("zerver.ui.jobs._MOST_COUNTED", 4)
    monkeypatch.setattr("zerver.ui.jobs._COUNTED_AT_ONCE", 2)
    async with a_world(works=False) as world:
        for n in range(5):
            await world.order(world.shop.letter, Mail(str(n)), delay=DAY)
        assert await world.get("matching?verb=cancel&flow=letter") == {"count": 4, "more": True}
        assert await world.get("matching?verb=cancel&queue=mail") == {"count": 5, "more": False}
        asked = {"verb": "cancel", "wanted": {"flow": "letter"}, "count": 4}
        assert (await world.post("matching", asked))[1] == {"changed": 5}


def test_a_verb_is_for_states_that_it_does_something_to() -> None:
    for verb, states in MEANT.items():
        assert meant(verb, Wanted()).states == states
        other = next(state for state in STATES if state not in states)
        assert meant(verb, Wanted(states=(other, states[0]))).states == (states[0],)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("jobs/{id}/retry", {}),
        ("jobs/{id}/cancel", {}),
        ("jobs/{id}/delete", {}),
        ("queues/mail/pause", {"paused": True}),
        ("matching", {"verb": "delete", "wanted": {}, "count": 1}),
        ("cases/{id}/retry", {}),
        ("cases/{id}/resolve", {"reason": "forged"}),
    ],
)
async def test_no_write_is_made_without_its_proof(path: str, body: Any, autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail("x", "refused"), "dead")
        run_id = (await world.browser.client.post("/orders/1", json={})).run
        assert run_id is not None
        where = path.replace("{id}", run_id.run_id if path.startswith("cases") else job_id)
        for forged in (
            {"x-zerver-csrf": ""},
            {"x-zerver-csrf": "0" * 64},
            {"origin": "http://evil.example"},
            {"sec-fetch-site": "cross-site"},
        ):
            assert (await world.post(where, body, **forged))[0] == 403, forged
        assert (await world.browser.post(where, body, **{"content-type": "text/plain"})).status == 415
        assert (await world.browser.get(f"/_zerver/api/{where}")).status in (200, 405, 400)  # a GET changes nothing
        assert (await world.states())[job_id] == "dead"
        assert not any(queue["paused"] for queue in (await world.get("queues"))["queues"])
        assert len((await world.get("cases"))["cases"]) == 1


async def test_a_program_with_the_token_may(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.letter, Mail("x", "refused"), "dead")
        headers = {"host": "127.0.0.1:8000", "authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        reply = await world.browser.client.post(f"/_zerver/api/jobs/{job_id}/delete", json={}, headers=headers)
        assert (reply.status, await world.states()) == (200, {})


# ---- the veil -------------------------------------------------------------------------------


async def test_no_secret_of_a_job_reaches_the_page(autojump_clock: object) -> None:
    async with a_world() as world:
        shop = world.shop
        ids = [
            await world.order(shop.letter, Mail("a", "fine", SECRET), "done"),
            await world.order(shop.letter, Mail(f"b of {SECRET}", "broken", SECRET), "dead"),
            await world.order(shop.pins, {"name": "c", "pin": SECRET}, "done"),
            await world.order(shop.tokens, Mail("d"), "dead"),
            await world.order(shop.letter, Mail("e", "fine", SECRET), delay=DAY),
            await world.order(shop.tokens, Mail(SECRET), delay=DAY),
            *await world.store.order([Order("a stranger", "gone", body=f'"{SECRET}"', at_unix_ns=2**62)]),
        ]
        told = [(await world.browser.get(f"/_zerver/api/jobs/{job_id.replace(' ', '%20')}")).text for job_id in ids]
        told.append((await world.browser.get("/_zerver/api/jobs")).text)
        assert all(SECRET not in text for text in told)
        pins, tokens = decode_json(told[2].encode(), Any), decode_json(told[3].encode(), Any)
        assert pins["body"]["value"] == {"name": "c", "pin": MASK}
        assert pins["result"]["value"] == {"name": "c", "checked": f"pin {MASK}"}
        assert tokens["error"] == f"ValueError: d may not use {MASK}"
        later, strange = decode_json(told[5].encode(), Any), decode_json(told[6].encode(), Any)
        assert later["body"] == {"value": None, "shown": MASK}  # nobody knows yet what of it is a token
        assert (strange["here"], strange["body"]["shown"]) == (False, MASK)


async def test_a_flow_with_secrets_shows_nothing_while_its_runs_are_not_here(autojump_clock: object) -> None:
    async with a_world() as world:
        job_id = await world.order(world.shop.tokens, Mail("d"), "dead")
        world.browser.page.desk._ring = None  # as after a restart
        job = await world.get(f"jobs/{job_id}")
        assert (job["error"], job["body"]["shown"]) == (MASK, MASK)
        assert [run["summary"] for run in job["runs"]] == [None, None]
        (listed,) = (await world.get("jobs"))["jobs"]
        assert listed["error"] == MASK


async def a_job(world_body: str | None, **changes: Any) -> Job:
    async with open_memory_jobs() as store:
        await store.order([Order("one", "letter", body=world_body)])
        job = await store.find("one")
        assert job is not None
        return attrs.evolve(job, **changes)


async def test_a_configured_name_is_hidden_wherever_its_value_stands(autojump_clock: object) -> None:
    plan = compile_plan(Workshop().letter)
    job = await a_job('{"to":"ada","ssn":"078-05-1120"}', error="078-05-1120 is wrong", result='["078-05-1120"]')
    veil = JobVeil(job, plan, Hidden(["ssn"]))
    assert veil.value(job.body) == {"value": {"to": "ada", "ssn": MASK}, "shown": f'{{"to":"ada","ssn":"{MASK}"}}'}
    assert veil.value(job.result) == {"value": [MASK], "shown": f'["{MASK}"]'}
    assert veil.text(job.error) == f"{MASK} is wrong"
    assert veil.said("it is to begin then, after attempt 1 failed: 078-05-1120 is wrong").endswith(f"{MASK} is wrong")


async def test_text_that_is_no_json_and_json_that_is_too_deep_are_shown_or_masked(autojump_clock: object) -> None:
    plan = compile_plan(Workshop().letter)
    job = await a_job("no json", result="[" * 5000 + "]" * 5000)
    veil = JobVeil(job, plan, NOTHING_HIDDEN)
    assert veil.value(job.body) == {"value": "no json", "shown": '"no json"'}
    assert veil.value(job.result) is not None
    assert veil.value(None) is None


async def test_texts_from_outside_stay_on_their_line(autojump_clock: object) -> None:
    async with a_world() as world:
        nasty = f"{CANARY}\n\x1b[31m\u202e"
        job_id = await world.order(world.shop.letter, Mail(nasty, "broken"), "dead", tenant=nasty)
        job = await world.get(f"jobs/{job_id}")
        for shown in (job["error"], job["tenant"], job["body"]["shown"], job["runs"][0]["summary"]["cause"]):
            assert CANARY in shown
            assert shown.isprintable()
