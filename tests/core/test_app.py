"""Apps: routes, scopes and before-chains as one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.core.strategies import READ
from zerver import App, Capability, Flow, Tenant, step
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


# ---- classes and tenants ----------------------------------------------------------------------


def test_a_route_may_say_the_class_of_its_runs() -> None:
    app = App()
    app.route("GET", "/a", PLAIN, priority="batch")
    app.route("GET", "/b", PLAIN)
    assert [route.priority for route in app.routes] == ["batch", None]
    with pytest.raises(DefinitionError, match="route GET /c: priority 'urgent' is unknown"):
        app.route("GET", "/c", PLAIN, priority="urgent")  # type: ignore[arg-type]


def test_identify_is_a_plain_function() -> None:
    async def ask(head: object) -> str:
        return "acme"

    with pytest.raises(DefinitionError, match="is not a plain function"):
        App(identify=ask)  # type: ignore[arg-type]


def test_tenants_may_be_given_by_name_alone() -> None:
    app = App(tenants={"acme": Tenant(weight=4.0)})
    assert app.tenants.get("acme").weight == 4.0
    assert app.tenants.get("other") == Tenant()


# ---- what runs in place of a refusal ----------------------------------------------------------


def test_the_degrade_flow_is_a_flow_of_the_app_behind_the_same_chain() -> None:
    cheap = Flow("cheap", [own])
    app = App()
    app.use(auth)
    app.route("GET", "/", Flow("dear", [log], degrade=cheap))
    (route,) = app.routes
    plan = route.degrade_plan()
    assert plan is not None
    assert [node.name for node in plan.line] == ["auth", "own"]
    assert set(app.flows) == {"dear", "cheap"}
    app.check()


def test_the_handlers_of_a_degrade_flow_are_checked_too() -> None:
    app = App()
    app.route("GET", "/", Flow("dear", [log], degrade=Flow("cheap", [look])))
    with pytest.raises(DefinitionError, match=r"step 'look' asks for 'test\.read'"):
        app.check()


def test_two_flows_may_share_a_degrade_flow_and_no_name() -> None:
    cheap = Flow("cheap", [own])
    app = App()
    app.route("GET", "/a", Flow("a", [log], degrade=cheap))
    app.route("GET", "/b", Flow("b", [log], degrade=cheap))
    app.check()
    app.route("GET", "/c", Flow("c", [log], degrade=Flow("cheap", [log])))
    with pytest.raises(DefinitionError, match="another flow is called 'cheap' too"):
        app.check()


def test_a_degrade_flow_has_none_itself() -> None:
    cheap = Flow("cheap", [own], degrade=Flow("cheaper", [own]))
    with pytest.raises(DefinitionError, match="one step down is all there is"):
        Flow("dear", [log], degrade=cheap)
    with pytest.raises(DefinitionError, match="is not a flow"):
        Flow("dear", [log], degrade=log)  # type: ignore[arg-type]


def test_types_tell_paths_apart_and_names_do_not() -> None:
    app = App()
    app.route("GET", "/o/{id:int}", PLAIN)
    app.route("GET", "/o/{id}", PLAIN)
    app.check()
    app.route("GET", "/o/{name:str}", PLAIN)
    with pytest.raises(DefinitionError, match="is the same path as"):
        app.check()


@pytest.mark.parametrize(
    "given", [{"tenants": Tenant()}, {"tenants": ["acme"]}, {"tenants": {"acme": {"runs": 1}}}, {"admission": 3}]
)
def test_what_are_no_tenants_and_no_policy_is_said_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=r"Tenant\(|AdmissionPolicy\("):
        App(**given)
