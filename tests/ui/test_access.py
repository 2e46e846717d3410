"""Who is let in: peers, hosts, tokens, cookies, and the proof that a write is meant."""

from __future__ import annotations

import re

import pytest

from zerver.errors import DefinitionError
from zerver.http import RequestHead
from zerver.http.messages import Headers
from zerver.ui.access import CSRF_HEADER, Access, Barred, Entrance, Session, new_token

TOKEN = "correct-horse-battery-staple"
HOST = {"host": "127.0.0.1:8000"}


class Clock:
    """Seconds since 1970, as told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access(TOKEN, clock=clock)


def head(method: str = "GET", target: str = "/_zerver/", **headers: str) -> RequestHead:
    fields = HOST | {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead(method, target, Headers.of(fields))


def enter(access: Access, token: str = TOKEN) -> str:
    """The cookie that the right token gives, as a browser sends it back."""
    entrance = access.judge(head(target=f"/_zerver/?token={token}"), "127.0.0.1")
    assert isinstance(entrance, Entrance)
    return entrance.cookie.partition(";")[0]


def barrier(access: Access, asked: RequestHead, peer: str = "127.0.0.1") -> str:
    judged = access.judge(asked, peer)
    return judged.barrier if isinstance(judged, Barred) else type(judged).__name__


# ---- tokens and cookies ---------------------------------------------------------------------


def test_without_a_token_nobody_gets_in(access: Access) -> None:
    assert access.judge(head(), "127.0.0.1") == Barred("token", 401)


def test_the_right_token_sets_a_cookie_and_leaves_the_url(access: Access) -> None:
    entrance = access.judge(head(target=f"/_zerver/?token={TOKEN}"), "127.0.0.1")
    assert isinstance(entrance, Entrance)
    assert entrance.location == "/_zerver/"
    assert TOKEN not in entrance.cookie
    name, *rest = entrance.cookie.split("; ")
    assert re.fullmatch(r"zerver_[0-9a-f]{12}=\d+\.[0-9a-f]{32}\.[0-9a-f]{64}", name)
    assert set(rest) == {"Path=/_zerver", "Max-Age=43200", "HttpOnly", "SameSite=Strict"}


def test_over_tls_the_cookie_is_secure(access: Access) -> None:
    entrance = access.judge(head(target=f"/_zerver/?token={TOKEN}"), "127.0.0.1", "https")
    assert isinstance(entrance, Entrance)
    assert entrance.cookie.endswith("; Secure")


def test_what_else_the_url_says_stays(access: Access) -> None:
    entrance = access.judge(head(target=f"/_zerver/?run=req_1&token={TOKEN}&tab=a%26b"), "127.0.0.1")
    assert isinstance(entrance, Entrance)
    assert entrance.location == "/_zerver/?run=req_1&tab=a%26b"


@pytest.mark.parametrize("target", [f"//evil.example/?token={TOKEN}", f"/_zerver//evil.example?token={TOKEN}"])
def test_the_redirect_leads_to_the_page_whatever_was_asked(access: Access, target: str) -> None:
    entrance = access.judge(head(target=target), "127.0.0.1")
    assert isinstance(entrance, Entrance)
    assert entrance.location == "/_zerver/"


def test_the_cookie_opens_the_page(access: Access) -> None:
    assert isinstance(access.judge(head(cookie=enter(access)), "127.0.0.1"), Session)
    assert isinstance(access.judge(head(cookie=f"a=b; {enter(access)}; c=d"), "127.0.0.1"), Session)


def test_a_cookie_of_another_token_does_not(access: Access, clock: Clock) -> None:
    other = Access("another-token-altogether", clock=clock)
    name, theirs = enter(access).partition("=")[0], enter(other, "another-token-altogether")
    assert barrier(access, head(cookie=theirs)) == "token"
    assert barrier(access, head(cookie=f"{name}={theirs.partition('=')[2]}")) == "token"


@pytest.mark.parametrize("end", ["", "x", "G", "é"])
def test_a_cookie_that_was_changed_does_not(access: Access, end: str) -> None:
    cookie = enter(access)
    assert barrier(access, head(cookie=cookie[:-1] + end)) == "token"
    name, _, value = cookie.partition("=")
    issued, _, rest = value.partition(".")
    assert barrier(access, head(cookie=f"{name}={int(issued) + 1000}.{rest}")) == "token"


def test_a_cookie_ends(access: Access, clock: Clock) -> None:
    cookie = enter(access)
    clock.now += 12 * 3600 - 1
    assert barrier(access, head(cookie=cookie)) == "Session"
    clock.now += 2
    assert barrier(access, head(cookie=cookie)) == "token"


def test_a_program_may_bring_the_token_each_time(access: Access) -> None:
    assert access.judge(head(authorization=f"Bearer {TOKEN}"), "127.0.0.1") == Session("")
    assert access.judge(head("POST", authorization=f"bearer {TOKEN}"), "127.0.0.1") == Session("")
    assert barrier(access, head(authorization="Bearer no")) == "token"
    assert barrier(access, head(authorization=f"Basic {TOKEN}")) == "token"


def test_a_token_in_the_url_opens_nothing_but_the_page(access: Access) -> None:
    assert barrier(access, head("POST", f"/_zerver/api/runs/x/replay?token={TOKEN}")) == "token"


def test_tokens_are_not_tried_fast(access: Access, clock: Clock) -> None:
    wrong = head(target="/_zerver/?token=no")
    cookie = enter(access)
    assert [barrier(access, wrong) for _ in range(12)] == ["token"] * 10 + ["throttled"] * 2
    throttled = access.judge(head(target=f"/_zerver/?token={TOKEN}"), "127.0.0.1")
    assert isinstance(throttled, Barred)
    assert (throttled.status, throttled.wait > 0) == (429, True)
    assert barrier(access, head(cookie=cookie)) == "Session"  # who is inside stays inside
    clock.now += throttled.wait
    assert barrier(access, head(target=f"/_zerver/?token={TOKEN}")) == "Entrance"


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(DefinitionError, match="too easy"):
        Access("secret")
    with pytest.raises(DefinitionError, match="too easy"):
        Access("x" * 15 + "\n")
    assert len(new_token()) >= 40
    assert new_token() != new_token()


# ---- peers and hosts ------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["192.0.2.7", "unix", "", "2001:db8::1", "::ffff:192.0.2.7"])
def test_a_peer_from_elsewhere_gets_nothing_even_with_the_token(access: Access, peer: str) -> None:
    assert barrier(access, head(authorization=f"Bearer {TOKEN}"), peer) == "stranger"


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_ask(access: Access, peer: str) -> None:
    assert barrier(access, head(authorization=f"Bearer {TOKEN}"), peer) == "Session"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "10.0.0.1", "a b", "[::2]"]
)
def test_a_name_that_was_rebound_to_this_machine_gets_nothing(access: Access, host: str) -> None:
    asked = RequestHead("GET", "/_zerver/", Headers.of({"host": host, "authorization": f"Bearer {TOKEN}"}))
    assert barrier(access, asked) == "stranger"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "[::1]:8000"])
def test_the_names_of_this_machine_are_served(access: Access, host: str) -> None:
    asked = RequestHead("GET", "/_zerver/", Headers.of({"host": host, "authorization": f"Bearer {TOKEN}"}))
    assert barrier(access, asked) == "Session"


def test_a_request_without_a_host_or_with_two_gets_nothing(access: Access) -> None:
    bearer = ("authorization", f"Bearer {TOKEN}")
    assert barrier(access, RequestHead("GET", "/_zerver/", Headers.of([bearer]))) == "stranger"
    two = Headers.of([bearer, ("host", "localhost"), ("host", "evil.example")])
    assert barrier(access, RequestHead("GET", "/_zerver/", two)) == "stranger"


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_real_ip", "via"])
def test_what_a_proxy_has_passed_on_gets_nothing(access: Access, header: str) -> None:
    assert barrier(access, head(authorization=f"Bearer {TOKEN}", **{header: "127.0.0.1"})) == "stranger"


def test_from_elsewhere_only_under_a_name_that_was_allowed() -> None:
    access = Access(TOKEN, hosts=["ops.example"])
    bearer = f"Bearer {TOKEN}"
    allowed = RequestHead("GET", "/_zerver/", Headers.of({"host": "ops.example:8000", "authorization": bearer}))
    assert barrier(access, allowed, "192.0.2.7") == "Session"
    assert barrier(access, head(authorization=bearer), "192.0.2.7") == "stranger"
    assert barrier(access, head(authorization=bearer), "127.0.0.1") == "Session"
    bare = RequestHead("GET", "/_zerver/", Headers.of({"host": "ops.example"}))
    assert barrier(access, bare, "192.0.2.7") == "token"


@pytest.mark.parametrize("host", ["*", "*.example"])
def test_any_name_cannot_be_allowed(host: str) -> None:
    with pytest.raises(DefinitionError, match="any name"):
        Access(TOKEN, hosts=[host])


# ---- other origins --------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["cross-site", "same-site", "whatever"])
def test_a_page_of_another_origin_gets_nothing(access: Access, site: str) -> None:
    cookie = enter(access)
    assert barrier(access, head(cookie=cookie, sec_fetch_site=site, sec_fetch_mode="cors")) == "stranger"
    assert barrier(access, head(cookie=cookie, sec_fetch_site=site, sec_fetch_mode="no-cors")) == "stranger"
    frame = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
    assert barrier(access, head(cookie=cookie, sec_fetch_site=site, **frame)) == "stranger"


def test_a_link_may_lead_here(access: Access) -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert barrier(access, head(target=f"/_zerver/?token={TOKEN}", **link)) == "Entrance"
    assert barrier(access, head("POST", cookie=enter(access), **link)) == "stranger"


def csrf(access: Access, cookie: str) -> str:
    session = access.judge(head(cookie=cookie), "127.0.0.1")
    assert isinstance(session, Session)
    return session.csrf


def test_a_write_needs_the_proof_of_its_own_cookie(access: Access) -> None:
    cookie, other = enter(access), enter(access)
    own = {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin", "cookie": cookie}
    name = CSRF_HEADER.replace("-", "_")
    assert barrier(access, head("POST", **own)) == "proof"
    assert barrier(access, head("POST", **own, **{name: "x"})) == "proof"
    assert barrier(access, head("POST", **own, **{name: csrf(access, other)})) == "proof"
    assert barrier(access, head("POST", **own, **{name: csrf(access, cookie)})) == "Session"
    assert csrf(access, cookie) != csrf(access, other)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8000", ""]
)
def test_a_write_comes_from_our_own_origin(access: Access, origin: str) -> None:
    cookie = enter(access)
    proof = {CSRF_HEADER.replace("-", "_"): csrf(access, cookie), "cookie": cookie}
    assert barrier(access, head("POST", origin=origin, **proof)) == "proof"
    assert barrier(access, head("DELETE", origin=origin, **proof)) == "proof"
    assert barrier(access, head("POST", origin=origin, authorization=f"Bearer {TOKEN}")) == "proof"


def test_a_write_with_a_cookie_says_where_it_comes_from(access: Access) -> None:
    cookie = enter(access)
    proof = {CSRF_HEADER.replace("-", "_"): csrf(access, cookie), "cookie": cookie}
    assert barrier(access, head("POST", **proof)) == "proof"
    assert barrier(access, head("POST", sec_fetch_site="same-origin", **proof)) == "Session"


def test_workers_that_share_a_token_share_their_sessions(clock: Clock) -> None:
    one, other = Access(TOKEN, clock=clock), Access(TOKEN, clock=clock)
    assert barrier(other, head(cookie=enter(one))) == "Session"


def test_the_printed_url(access: Access) -> None:
    assert access.url("http://127.0.0.1:8000") == f"http://127.0.0.1:8000/_zerver/?token={TOKEN}"
