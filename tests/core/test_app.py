"""Apps: routes, scopes and before-chains as one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.core.strategies import READ
from zerver import App, Capability, Flow, step
from zerver.errors import DefinitionError


@step
def log() -> None: ...


@step
def auth() -> None: ...


@step
def own() -> None: ...


@step
async def look() -> None:
    await READ()


PLAIN = Flow("plain", [log])


def test_before_chains_run_from_the_outside_in() -> None:
    app = App()
    inner = app.scope("/v2", before=[auth]).scope("/orders")
    inner.route("GET", "/{id}", PLAIN, before=[own])
    app.use(log)  # added later, and yet around every route
    (route,) = app.routes
    assert (route.label, route.before) == ("GET /v2/orders/{id}", (log, auth, own))
    assert [node.name for node in route.plan().line] == ["log", "auth", "own", "log#2"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda app: app.route("get", "/", PLAIN), 'the method is not in capitals\n  write "GET"'),
        (lambda app: app.route("GET", "x", PLAIN), "the path does not start with '/'\n  write \"/x\""),
        (lambda app: app.route("GET", "/", log), "was given <step log>, which is not a flow"),
        (lambda app: app.scope("v2"), "scope 'v2'"),
        (lambda app: app.scope("/v2/"), "scope '/v2/'"),
        (lambda app: app.use(lambda: None), "is not a stage"),
    ],
)
def test_what_is_refused(build: Callable[[App], Any], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        build(App())
    assert words in str(caught.value)


def test_what_check_finds() -> None:
    twice, names = App(), App()
    twice.route("GET", "/", PLAIN)
    twice.route("GET", "/", PLAIN)
    names.route("GET", "/a", PLAIN)
    names.route("GET", "/b", Flow("plain", [log]))
    for app, words in [
        (twice, "route GET / is defined twice\n  remove one of them"),
        (names, "route GET /b: another flow is called 'plain' too\n  give each flow a name of its own"),
    ]:
        with pytest.raises(DefinitionError) as caught:
            app.check()
        assert str(caught.value) == words


def test_one_flow_may_be_served_twice() -> None:
    app = App()
    app.route("GET", "/a", PLAIN)
    app.route("POST", "/a", PLAIN)
    app.check()
    assert app.flows == {"plain": PLAIN}


def test_capabilities_handle_kinds() -> None:
    class Group:
        def capability(self) -> Capability:
            return Capability(name="group", handlers={"test.read": lambda: "x"})

    for capabilities, handled in ([], False), ([Group()], True), ([Group().capability()], True):
        app = App(capabilities=capabilities)
        app.route("GET", "/", Flow("looking", [look]))
        assert app.handles("test.read") == handled
        if handled:
            app.check()
        else:
            with pytest.raises(DefinitionError, match=r"asks for 'test\.read', but nothing handles it"):
                app.check()


def test_effects_of_the_before_chain_are_checked_too() -> None:
    app = App()
    app.use(look)
    app.route("GET", "/", PLAIN)
    with pytest.raises(DefinitionError, match="step 'look' asks for"):
        app.check()
