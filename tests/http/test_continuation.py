"""A run that parks behind a route gives URLs: each is signed, goes on with one signal, and says how it stands."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.dying import Witness, charged
from zerver import App, Done, Fail, Flow, Pause, Slot, step
from zerver.errors import JournalUnavailable
from zerver.http import Limits, Path, json
from zerver.http.continuation import PREFIX, Place, read_token, token_of
from zerver.journal import Disk, open_memory_journal
from zerver.runtime.result import Continuation
from zerver.testing import Client, Reply, client

Said = Annotated[Any, Slot("said")]
More = Annotated[Any, Slot("more")]

HOUR = 3600.0


@step
async def ask(name: Annotated[str, Path()]) -> Said | Pause:
    await charged(len(name))
    return Pause("approval", expires=HOUR)


@step
def answer(said: Said) -> Done:
    return Done(json({"said": said}, 201))


@step
def ask_again(said: Said) -> More | Pause:
    return Pause("second", expires=HOUR)


@step
def answer_both(said: Said, more: More) -> Done:
    return Done([said, more])


@step
def refuse(said: Said) -> Done | Fail:
    return Fail.forbidden(f"said {said}")


def app() -> App:
    made = App()
    made.route("POST", "/orders/{name}", Flow("order", [ask, answer], durability="sync"))
    made.route("POST", "/twice/{name}", Flow("twice", [ask, ask_again, answer_both], durability="async"))
    made.route("POST", "/refused/{name}", Flow("refused", [ask, refuse], durability="sync"))
    keyed = Flow("keyed", [ask, answer], durability="sync", idempotency="required")
    made.route("POST", "/keyed/{name}", keyed)
    return made


@asynccontextmanager
async def open_client(disk: Disk | None = None, **how: Any) -> AsyncIterator[Client]:
    async with (
        open_memory_journal(disk) as journal,
        client(app(), handlers=Witness().handlers(), journal=journal, **how) as asking,
    ):
        yield asking


async def parked(asking: Client, path: str = "/orders/x", **more: Any) -> tuple[str, Reply]:
    """A URL, and the answer that it stands in."""
    reply = await asking.post(path, **more)
    assert reply.status == 202, reply.text
    return reply.headers["location"], reply


async def test_a_run_that_parks_is_answered_with_where_it_goes_on(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, reply = await parked(asking)
        told = reply.json()
        assert told["status"] == "parked"
        assert told["run"] == reply.headers["x-request-id"]
        assert told["continue"] == {"approval": url}
        assert told["expires"].endswith("Z")
        assert url.startswith(f"{PREFIX}/")
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["content-type"] == "application/json"
        assert asking.runtime.statistics().running == 0


async def test_a_post_is_answered_with_what_the_run_comes_to_and_then_the_url_is_used(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, first = await parked(asking)
        done = await asking.post(url, json={"by": "boss"})
        assert (done.status, done.json()) == (201, {"said": {"by": "boss"}})
        assert done.headers["x-request-id"] == first.headers["x-request-id"]
        again = await asking.post(url, json={"by": "thief"})
        assert (again.status, again.headers["cache-control"]) == (409, "no-store")
        assert again.headers["content-type"] == "application/problem+json"
        assert again.json()["run"] == first.json()["run"]
        assert len(asking.runs) == 1


async def test_of_posts_at_once_one_is_taken(autojump_clock: object) -> None:
    statuses: list[int] = []
    async with open_client() as asking:
        url, _ = await parked(asking)

        async def post(number: int) -> None:
            statuses.append((await asking.post(url, json=number)).status)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(post, number)
    assert sorted(statuses) == [201, *(9 * [409])]


async def test_a_run_that_parks_again_gives_the_next_url(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, _ = await parked(asking, "/twice/x")
        second = await asking.post(url, json="a")
        assert (second.status, list(second.json()["continue"])) == (202, ["second"])
        assert (await asking.post(url, json="a")).status == 409
        done = await asking.post(second.headers["location"], json="b")
        assert (done.status, done.json()) == (200, ["a", "b"])


async def test_a_run_that_fails_is_answered_as_behind_its_route(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, _ = await parked(asking, "/refused/x")
        reply = await asking.post(url, json="no")
        assert (reply.status, reply.json()["what"]) == (403, "said no")


async def test_looking_uses_nothing_up(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, first = await parked(asking)
        for _ in range(3):
            seen = await asking.get(url)
            assert (seen.status, seen.headers["cache-control"]) == (200, "no-store")
            assert seen.json() == {
                "run": first.json()["run"],
                "signal": "approval",
                "status": "parked",
                "expires": first.json()["expires"],
            }
            assert (await asking.head(url)).status == 200
        assert (await asking.post(url, json=1)).status == 201
        assert (await asking.get(url)).json()["status"] == "used"


async def test_what_has_expired_is_gone(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, _ = await parked(asking)
        await trio.sleep(HOUR + 60)
        assert asking.runs[0].cause == Fail("expired", "approval")
        assert (await asking.get(url)).json()["status"] == "expired"
        assert (await asking.post(url, json=1)).status == 410


async def test_another_worker_answers_as_well(autojump_clock: object) -> None:
    disk = Disk()
    async with open_client(disk) as one, open_client(disk) as other:
        url, _ = await parked(one)
        done = await other.post(url, json="yes")
        assert (done.status, done.json()) == (201, {"said": "yes"})
        assert (await one.post(url, json="yes")).status == 409


async def test_what_was_not_signed_here_is_not_there(autojump_clock: object) -> None:
    async with open_client() as asking, open_client() as stranger:
        url, _ = await parked(asking)
        token = url.removeprefix(f"{PREFIX}/")
        raw = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        raw[-1] ^= 1
        forged = urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
        for wrong in (forged, token[:-4], token + "=", token + "AA", "x", "%41", 5000 * "A", ""):
            for ask_for in (asking.get, partial(asking.post, json=1)):
                assert (await ask_for(f"{PREFIX}/{wrong}")).status == 404, wrong
        assert (await stranger.get(url)).status == 404, "another journal has another key"
        assert (await asking.get(url)).json()["status"] == "parked"


async def test_a_body_is_strict_json_of_a_bounded_size_or_nothing_is_used_up(autojump_clock: object) -> None:
    async with open_client(limits=Limits(body=100)) as asking:
        url, _ = await parked(asking)
        typed = {"content-type": "application/json"}
        for body, status in ((b"", 400), (b"{", 400), (b'{"a":1,"a":2}', 400), (b"NaN", 400), (101 * b"1", 413)):
            assert (await asking.post(url, body=body, headers=typed)).status == status, body
        assert (await asking.post(url, body=b"1", headers={"content-type": "text/plain"})).status == 415
        assert (await asking.put(url, json=1)).headers["allow"] == "GET, HEAD, POST"
        assert (await asking.get(url)).json()["status"] == "parked"
        assert (await asking.post(url, body=b"null", headers=typed)).json() == {"said": None}


async def test_a_key_gives_the_same_url_again(autojump_clock: object) -> None:
    async with open_client() as asking:
        with_key = {"idempotency-key": '"k1"'}
        url, first = await parked(asking, "/keyed/x", headers=with_key)
        again = await asking.post("/keyed/x", headers=with_key)
        assert (again.status, again.body, again.headers["location"]) == (202, first.body, url)
        assert (await asking.post(url, json=1)).status == 201
        assert (await asking.post("/keyed/x", headers=with_key)).status == 202
        assert sorted(run.ending.value is None for run in asking.runs) == [False, True, True], "one was carried out"


async def test_a_client_that_leaves_stops_nothing(autojump_clock: object) -> None:
    async with open_client() as asking:
        url, _ = await parked(asking)
        async with asking.open_request("POST", url, json="yes"):
            while (await asking.get(url)).json()["status"] == "parked":
                await trio.lowlevel.checkpoint()
        await trio.sleep(1)
        assert asking.runs[0].ok


async def test_while_the_journal_is_away_it_is_503(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client() as asking:
        url, _ = await parked(asking)
        assert asking.runtime.clerk is not None

        async def away(*_: object) -> bool:
            raise JournalUnavailable("away", 3.0)

        with monkeypatch.context() as patched:
            patched.setattr(asking.runtime.clerk.journal, "signal", away)
            patched.setattr(asking.runtime.clerk.journal, "read", away)
            for reply in (await asking.post(url, json=1), await asking.get(url)):
                assert (reply.status, reply.headers["retry-after"]) == (503, "3")
        assert (await asking.post(url, json=1)).status == 201


# ---- tokens ---------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.text(), st.text(), st.integers(1, 1 << 40), st.integers(0, 1 << 62))
def test_a_token_names_what_it_was_made_of(key: bytes, run_id: str, signal: str, number: int, expires: int) -> None:
    continuation = Continuation(signal, number, expires)
    token = token_of(key, run_id, continuation)
    assert all(character.isalnum() or character in "-_" for character in token)
    place = read_token(key, token)
    assert place == Place(run_id, continuation) or len(token) > 4096
    assert read_token(bytes(32) if key != bytes(32) else b"\1" * 32, token) is None


@given(st.text())
def test_any_other_text_is_no_token(token: str) -> None:
    assert read_token(bytes(32), token) is None
