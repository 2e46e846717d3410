"""Redirects: followed as far as asked, by reads alone, and without credentials to strangers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from zerver.errors import AddressRefused
from zerver.http import Exchange, Headers, Response, open_http_client, open_http_listeners, serve_http
from zerver.http.messages import ResponseHead
from zerver.http.outgoing import Outgoing, outgoing
from zerver.http.redirects import next_hop

SECRETS = Headers.of(
    {"Authorization": "Bearer t", "Cookie": "a=b", "Host": "a.example", "X-Api-Key": "k", "Accept": "x/y"}
)
HERE = "https://a.example/x/y"


def hop(location: str | None, method: str = "GET", status: int = 302) -> Outgoing | None:
    told = {"X-Request-Id": "7"}
    asked = outgoing(method, HERE, SECRETS, b"", None, told)
    return next_hop(asked, ResponseHead(status, Headers.of({"Location": location} if location is not None else {})))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"), [("/z", "/z"), ("z?q=1#part", "/x/z?q=1"), ("https://a.example:443/", "/")]
)
def test_the_same_origin_is_told_everything(status: int, location: str, target: str) -> None:
    asked, next_ = outgoing("GET", HERE, SECRETS, b"", None, {"X-Request-Id": "7"}), hop(location, status=status)
    assert next_ is not None
    assert (next_.origin, next_.target, next_.body) == (asked.origin, target, b"")
    assert next_.head.headers == asked.head.headers


@pytest.mark.parametrize("location", ["https://b.example/", "//b.example/", "https://a.example:444/"])
def test_another_origin_is_told_what_anybody_may_know(location: str) -> None:
    next_ = hop(location)
    assert next_ is not None
    ours = {"Host": next_.origin.authority, "User-Agent": "zerver", "Accept-Encoding": "identity"}
    assert next_.head.headers.raw == Headers.of({**ours, "Accept": "x/y"}).raw


@pytest.mark.parametrize(
    "location", [None, "http://a.example/", "ftp://a.example/", "https://u@a.example/", "https://["]
)
def test_nothing_to_ask_for_is_the_answer(location: str | None) -> None:
    assert hop(location) is None


@pytest.mark.parametrize(
    ("method", "status"), [("POST", 303), ("PUT", 308), ("DELETE", 302), ("GET", 200), ("GET", 304)]
)
def test_a_writes_redirect_and_any_other_status_is_the_answer(method: str, status: int) -> None:
    assert hop("/z", method, status) is None


@asynccontextmanager
async def circle() -> AsyncIterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that sends /n to /n+1, and /9 to an address that must not be asked."""
    seen: list[tuple[str, str | None]] = []

    async def answer(exchange: Exchange) -> Response:
        seen.append((exchange.head.path, exchange.head.headers.get("authorization")))
        number = int(exchange.head.path[1:])
        location = "http://169.254.169.254/latest" if number == 9 else f"/{number + 1}"
        return Response(302, {"Location": location})

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_http, answer, await open_http_listeners())
        yield server.addresses[0], seen
        nursery.cancel_scope.cancel()


async def test_as_many_are_followed_as_were_asked_for() -> None:
    async with circle() as (url, seen), open_http_client(allow_private=True) as client:
        for redirects in (0, 1, 3):
            seen.clear()
            headers = {"Authorization": "Bearer t"}
            reply = await client.request("GET", f"{url}/1", headers=headers, redirects=redirects)
            assert reply.status == 302
            assert seen == [(f"/{number}", "Bearer t") for number in range(1, redirects + 2)]
        seen.clear()
        assert (await client.request("POST", f"{url}/1", redirects=5)).status == 302
        assert seen == [("/1", None)]
        assert client.statistics().busy == 0


async def test_each_address_is_checked() -> None:
    async with circle() as (url, seen), open_http_client(allow_private=True) as open_client:
        dial = open_client._dial

        async def dial_here_only(origin: object) -> trio.abc.Stream:
            if str(origin) != url:
                raise AddressRefused(f"{origin}: refused")
            return await dial(origin)  # type: ignore[arg-type] # the dialer takes an Origin, which this is

        async with open_http_client(dial=dial_here_only) as client:
            with pytest.raises(AddressRefused):
                await client.request("GET", f"{url}/9", redirects=1)
            assert seen == [("/9", None)]
            assert client.statistics().busy == 0
