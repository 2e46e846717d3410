"""The table finds what a naive reading of its patterns finds, refuses clashes, and nothing slips out of a segment."""

from __future__ import annotations

import random
import re
import uuid
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zerver import App, Done, Flow, step
from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http.messages import RequestHead
from zerver.http.router import Entry, Match, Miss, Router, url_for

UUID = "0190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1e"


def routes(*lines: str) -> Router[str]:
    """A table from lines like "GET /a"; the payload of a route is its line, its name what follows " as "."""
    entries = []
    for line in lines:
        route, _, name = line.partition(" as ")
        method, path = route.split(" ", 1)
        entries.append(Entry(method, path, route, name))
    return Router(entries)


def found(router: Router[str], method: str, target: str) -> tuple[str, dict[str, str]] | int:
    """The route and its parameters, or the status of a miss."""
    answer = router.find(RequestHead(method, target))
    return (answer.payload, dict(answer.params)) if isinstance(answer, Match) else answer.status


# ---- finding --------------------------------------------------------------------------------

SHOP = routes(
    "GET /",
    "GET /v2/orders",
    "POST /v2/orders",
    "GET /v2/orders/latest",
    "GET /v2/orders/{number:int}",
    "GET /v2/orders/{ref:uuid}",
    "GET /v2/orders/{id}",
    "PATCH /v2/orders/{id}",
    "GET /v2/orders/{id}/items/{sku}",
    "GET /v2/orders/{rest:path}",
    "GET /files/{path:path}",
    "GET /tail/",
    "GET /é ü/x",
)


@pytest.mark.parametrize(
    ("target", "route", "params"),
    [
        ("/", "/", {}),
        ("/?a=1", "/", {}),
        ("http://host/v2/orders", "/v2/orders", {}),
        ("/v2/orders", "/v2/orders", {}),
        ("/v2/%6Frders", "/v2/orders", {}),
        ("/v2/orders/latest", "/v2/orders/latest", {}),
        ("/v2/orders/12", "/v2/orders/{number:int}", {"number": "12"}),
        ("/v2/orders/-12", "/v2/orders/{id}", {"id": "-12"}),
        ("/v2/orders/%D9%A3", "/v2/orders/{id}", {"id": "٣"}),  # a digit, but none of ours
        (f"/v2/orders/{UUID}", "/v2/orders/{ref:uuid}", {"ref": UUID}),
        (f"/v2/orders/{UUID[:-1]}-", "/v2/orders/{id}", {"id": UUID[:-1] + "-"}),
        ("/v2/orders/" + UUID.replace("-", ""), "/v2/orders/{id}", {"id": UUID.replace("-", "")}),
        ("/v2/orders/a%2Fb", "/v2/orders/{id}", {"id": "a/b"}),
        ("/v2/orders/latest/items/7", "/v2/orders/{id}/items/{sku}", {"id": "latest", "sku": "7"}),
        ("/v2/orders/12/items/7", "/v2/orders/{id}/items/{sku}", {"id": "12", "sku": "7"}),
        ("/v2/orders/12/notes", "/v2/orders/{rest:path}", {"rest": "12/notes"}),
        ("/v2/orders/", "/v2/orders/{rest:path}", {"rest": ""}),
        ("/files/a/b%20c/", "/files/{path:path}", {"path": "a/b c/"}),
        ("/tail/", "/tail/", {}),
        ("/%C3%A9%20%C3%BC/x", "/é ü/x", {}),
    ],
)
def test_the_best_route_is_found_segment_by_segment(target: str, route: str, params: dict[str, str]) -> None:
    assert found(SHOP, "GET", target) == (f"GET {route}", params)
    assert found(SHOP, "HEAD", target) == (f"GET {route}", params)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/",
        "//",
        "//v2/orders",
        "/V2/orders",
        "/v2/orders%2Flatest",
        "/v2/./orders",
        "/files",
        "/files/../secret",
        "/files/a/../../secret",
        "/files/..",
        "/files/%2e%2e/secret",
        "/files/..%2fsecret",
        "/files/a%2fb",
        "/files/..%5csecret",
        "/files//etc/passwd",
        "/files/a//b",
        "/files/%2Fetc",
        "/v2/orders/..",
        "/v2/orders/%2e",
        "/v2/orders//items/7",
        "host:443",
        "*",
        "",
    ],
)
def test_other_spellings_and_ways_around_have_no_route(target: str) -> None:
    assert found(SHOP, "GET", target) == 404


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        SHOP.find(RequestHead("GET", "/v2/%zz"))


def test_another_spelling_of_the_slash_is_named() -> None:
    miss = SHOP.find(RequestHead("GET", "/tail"))
    assert isinstance(miss, Miss)
    assert miss == Miss(404, (), "there is such a path with a trailing slash")
    miss = routes("GET /a").find(RequestHead("GET", "/a/"))
    assert miss == Miss(404, (), "there is such a path without the trailing slash")
    assert SHOP.find(RequestHead("GET", "/none")) == Miss(404)


# ---- methods --------------------------------------------------------------------------------


def test_a_path_of_other_methods_tells_which() -> None:
    assert SHOP.find(RequestHead("DELETE", "/v2/orders")) == Miss(405, ("GET", "HEAD", "OPTIONS", "POST"))
    assert SHOP.find(RequestHead("OPTIONS", "/v2/orders")) == Miss(204, ("GET", "HEAD", "OPTIONS", "POST"))
    everywhere = Miss(204, ("GET", "HEAD", "OPTIONS", "PATCH", "POST"))
    assert SHOP.find(RequestHead("OPTIONS", "*")) == everywhere
    assert SHOP.find(RequestHead("OPTIONS", "/none")) == Miss(404)


def test_a_method_is_looked_for_in_all_patterns_that_match() -> None:
    router = routes("GET /a/me", "POST /a/{id}", "PUT /{rest:path}")
    assert found(router, "POST", "/a/me") == ("POST /a/{id}", {"id": "me"})
    assert found(router, "PUT", "/a/me") == ("PUT /{rest:path}", {"rest": "a/me"})
    assert router.find(RequestHead("DELETE", "/a/me")) == Miss(405, ("GET", "HEAD", "OPTIONS", "POST", "PUT"))


def test_head_and_options_of_ones_own_win() -> None:
    router = routes("GET /a", "HEAD /a", "OPTIONS /a", "POST /b")
    assert found(router, "HEAD", "/a") == ("HEAD /a", {})
    assert found(router, "OPTIONS", "/a") == ("OPTIONS /a", {})
    assert router.find(RequestHead("HEAD", "/b")) == Miss(405, ("OPTIONS", "POST"))


def test_an_empty_table_finds_nothing() -> None:
    assert found(routes(), "GET", "/") == 404
    assert routes().find(RequestHead("OPTIONS", "*")) == Miss(204, ("OPTIONS",))


def test_matches_of_literal_paths_are_made_once() -> None:
    assert SHOP.find(RequestHead("GET", "/v2/orders")) is SHOP.find(RequestHead("GET", "/v2/orders?x"))


# ---- tables that are wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/a"),
        ("/a/{id}", "/a/{name}"),
        ("/a/{id}", "/a/{id:str}"),
        ("/a/{id:int}/b", "/a/{n:int}/b"),
        ("/{a:path}", "/{b:path}"),
    ],
)
def test_two_routes_of_one_shape_are_refused_by_name(one: str, other: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        routes(f"GET {one}", f"GET {other}")
    assert f"route GET {one}" in str(refused.value)
    assert f"route GET {other}" in str(refused.value)
    routes(f"GET {one}", f"PUT {other}")


# ---- reverse --------------------------------------------------------------------------------

NAMED = routes(
    "GET / as home",
    "GET /orders as orders",
    "GET /orders/{id:int} as orders",
    "GET /by-ref/{ref:uuid} as ref",
    "GET /é/{name} as person",
    "GET /files/{path:path} as file",
)


def test_urls_are_written_from_names() -> None:
    assert NAMED.url_for("home") == "/"
    assert NAMED.url_for("orders") == "/orders"
    assert NAMED.url_for("orders", id=7) == "/orders/7"
    assert NAMED.url_for("ref", ref=uuid.UUID(UUID)) == f"/by-ref/{UUID}"
    assert NAMED.url_for("person", name="a/b ?#é") == "/%C3%A9/a%2Fb%20%3F%23%C3%A9"
    assert NAMED.url_for("file", path="a b/c/") == "/files/a%20b/c/"


def test_urls_are_written_from_an_app() -> None:
    @step
    def show() -> Done:
        return Done()

    app, order = App(), Flow("order", [show])
    app.scope("/v2").route("GET", "/orders/{id:int}", order)
    app.route("GET", "/orders", order)
    assert url_for(app, "order", id=7) == "/v2/orders/7"
    assert url_for(app, "order") == "/orders"
    with pytest.raises(LookupError, match="'order' and has ref"):
        url_for(app, "order", ref=7)
    with pytest.raises(ValueError, match="id"):
        url_for(app, "order", id="x")


def test_urls_that_no_route_would_take_are_not_written() -> None:
    for name, params in [("none", {}), ("home", {"id": 1}), ("person", {}), ("person", {"id": 1})]:
        with pytest.raises(LookupError, match=name):
            NAMED.url_for(name, **params)
    for name, param, value in [
        ("orders", "id", "x"),
        ("orders", "id", -1),
        ("ref", "ref", "x"),
        ("person", "name", ""),
        ("person", "name", ".."),
        ("person", "name", "a\0"),
        ("file", "path", "../x"),
        ("file", "path", "/etc"),
    ]:
        with pytest.raises(ValueError, match=param):
            NAMED.url_for(name, **{param: value})


@given(st.text(st.characters(codec="utf-8")))
def test_every_url_that_is_written_is_found_again(text: str) -> None:
    for name, param in [("person", "name"), ("file", "path")]:
        try:
            url = NAMED.url_for(name, **{param: text})
        except ValueError:
            continue
        match = NAMED.find(RequestHead("GET", url))
        assert isinstance(match, Match)
        assert match.params == {param: text}


# ---- against a naive model ------------------------------------------------------------------

RANKS = {"int": 1, "uuid": 1, "str": 2, "path": 3}


def naive_match(pattern: str, segments: list[str]) -> tuple[tuple[int, ...], dict[str, str]] | None:
    """How well a pattern matches, as ranks to compare from the left, and the parameters."""
    ranks: list[int] = []
    params: dict[str, str] = {}
    wanted = pattern.split("/")[1:]
    for at, piece in enumerate(wanted):
        if piece.startswith("{"):
            name, _, kind = piece[1:-1].partition(":")
            if kind == "path":
                tail = segments[at:]
                fits = bool(tail) and all(s and s not in (".", "..") and not set(s) & set("/\\") for s in tail[:-1])
                fits = fits and tail[-1] not in (".", "..") and not set(tail[-1]) & set("/\\")
                return ((*ranks, 3), {**params, name: "/".join(tail)}) if fits else None
            form = {"int": r"[0-9]+", "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"}.get(
                kind, r"(?s:.+)"
            )
            if at >= len(segments) or segments[at] in (".", "..") or not re.fullmatch(form, segments[at]):
                return None
            ranks.append(RANKS[kind or "str"])
            params[name] = segments[at]
        elif at < len(segments) and segments[at] == piece:
            ranks.append(0)
        else:
            return None
    return (tuple(ranks), params) if len(wanted) == len(segments) else None


def naive_find(table: list[tuple[str, str]], method: str, segments: list[str]) -> tuple[str, dict[str, str]] | int:
    """The best of all matching routes; HEAD belongs to a route of its own, else to GET's, of the same shape."""
    matching = [(m, p, found) for m, p in table if (found := naive_match(p, segments)) is not None]
    if not matching:
        return 404
    own = [(ranks, 0, f"{m} {p}", params) for m, p, (ranks, params) in matching if m == method]
    if method == "HEAD":
        own += [(ranks, 1, f"{m} {p}", params) for m, p, (ranks, params) in matching if m == "GET"]
    if not own:
        return 204 if method == "OPTIONS" else 405
    _, _, route, params = min(own, key=lambda found: found[:2])
    return route, params


PIECES = st.sampled_from(["a", "b", "7", "{x}", "{y}", "{n:int}", "{u:uuid}"])
TAILS = st.sampled_from(["", "/", "/{t:path}", "/{t:path}"])
PATTERNS = st.builds(
    lambda pieces, tail: ("".join("/" + piece for piece in pieces) + tail) or "/", st.lists(PIECES, max_size=4), TAILS
)
METHODS = st.sampled_from(["GET", "GET", "POST", "HEAD", "OPTIONS"])
SEGMENTS = st.lists(
    st.sampled_from(["a", "b", "7", "42", UUID, "", ".", "..", "a/b", "\\", "é"]), min_size=1, max_size=6
)


@given(st.lists(st.tuples(METHODS, PATTERNS), max_size=12), METHODS, SEGMENTS)
def test_the_trie_finds_what_a_naive_reading_finds(
    table: list[tuple[str, str]], method: str, segments: list[str]
) -> None:
    kept: list[tuple[str, str]] = []
    for route in dict.fromkeys(table):
        try:
            Router(Entry(m, p, "") for m, p in [*kept, route])
        except DefinitionError:
            continue  # twins and doubled names; their own tests are above
        kept.append(route)
    router = Router(Entry(m, p, f"{m} {p}") for m, p in kept)
    target = "".join("/" + quote(segment, safe="") for segment in segments)
    assert found(router, method, target) == naive_find(kept, method, segments)


@given(st.lists(st.tuples(METHODS, PATTERNS), min_size=2, max_size=8), st.randoms(use_true_random=False), SEGMENTS)
def test_the_order_of_definition_does_not_matter(
    table: list[tuple[str, str]], shuffle: random.Random, segments: list[str]
) -> None:
    try:
        first = Router(Entry(m, p, f"{m} {p}") for m, p in table)
    except DefinitionError:
        assume(False)
    shuffled = list(table)
    shuffle.shuffle(shuffled)
    second = Router(Entry(m, p, f"{m} {p}") for m, p in shuffled)
    target = "".join("/" + quote(segment, safe="") for segment in segments)
    for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        assert first.find(RequestHead(method, target)) == second.find(RequestHead(method, target))


def test_a_lookup_visits_each_prefix_of_the_table_once() -> None:
    """Overlapping patterns, 2**n ways to read a path: what is counted is looks at segments, so no clock is needed."""

    class Counting(str):
        looks = 0

        def __hash__(self) -> int:
            type(self).looks += 1
            return super().__hash__()

        __eq__ = str.__eq__

    patterns = ["/" + "/".join(["a"] * i + [f"{{x{i}}}"] + ["a"] * (20 - i)) for i in range(21)]
    router = Router(Entry("GET", path, path) for path in [*patterns, "/{rest:path}"])
    segments = tuple(Counting("a") for _ in range(21))
    nodes = 1 + 22 + sum(21 - i for i in range(21))
    assert len(list(router._ends(segments))) == 22
    assert Counting.looks <= 3 * nodes + len(segments)
