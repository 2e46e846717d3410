"""`zerver explain` says what applies to a request and who says so, and it is what the runtime goes by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import BROKEN, zerver
from zerver import App, Done, Flow, effect, step
from zerver.cli.explanation import explain_route, policy_levels
from zerver.core.policy import Policy
from zerver.core.targets import Target
from zerver.core.tenants import Tenant, Tenants
from zerver.edge import compile_routes
from zerver.http import RequestHead
from zerver.http.router import Match
from zerver.runtime import open_runtime

SHOP = """
from typing import Annotated
from zerver import App, Done, Fail, Flow, Slot, branch, effect, parallel, pivot, step
from zerver.core.policy import Policy
from zerver.core.targets import Target
from zerver.core.tenants import Tenant
from zerver.core.effects import INJECTED, IdempotencyKey
from zerver.http import Header, Path

User = Annotated[str, Slot("auth.user")]
Payment = Annotated[str, Slot("payment")]
Gift = Annotated[str, Slot("gift")]


@step(name="auth.verify")
def verify(authorization: Annotated[str, Header()]) -> User | Fail:
    return authorization


@effect(kind="payments.charge", access="write", policy=Policy(backoff=0.2))
async def charge_card(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    return ""


@effect(kind="payments.refund", access="write")
async def refund(charge: str) -> None:
    pass


@step(name="payment.charge")
async def charge(user: User, id: Annotated[int, Path()]) -> Payment:
    return await charge_card(id).with_policy(timeout=0.8, retries=2).compensate(refund)


@step
def note(user: User) -> None:
    pass


@step
def wrap(user: User) -> Gift | None:
    return None


def is_gift(user: User) -> bool:
    return True


@step
def render(payment: Payment, gift: Gift | None) -> Done:
    return Done(payment)


async def old(scope, receive, send):
    pass


inner = Flow("inner", [note], takes=[User], deadline=1.0)
pay = Flow(
    "pay",
    [charge, parallel(wrap, inner), branch(is_gift, note), pivot(render)],
    takes=[User], deadline=2.0, priority="interactive", owner="payments", policy=Policy(retries=0),
)
app = App(
    "shop",
    policy=Policy(backoff_cap=9.0),
    targets={"payments": Target(policy=Policy(backoff_cap=1.0), breaker=None)},
    tenants={"acme": Tenant(runs=3, priority="batch")},
)
app.use(verify)
app.route("POST", "/orders/{id:int}/pay", pay)
app.route("GET", "/orders/{id:int}", pay, priority="default")
app.mount("/old", old)
"""

HEAD = """\
POST /orders/{id:int}/pay → flow pay, version 1, owner payments

class           interactive, as the flow says
waits           50 ms at most for its ticket
a step          may take 3 ms; a longer one is recorded as an overrun
deadline        2 s
undo deadline   10 s
client leaves   the run goes on, because of the method
when refused    429 or 503
idempotency     keys mean nothing
tenant          default, by the default: weight 1

steps
  auth.verify: of the before-chain; reads header authorization; writes auth.user  (shop.py:15)
  payment.charge: reads auth.user, path id; writes payment; asks for payments.charge, payments.refund  (shop.py:30)
  parallel
    wrap: reads auth.user; writes gift?  (shop.py:40)
    flow inner, within 1 s
      note: reads auth.user  (shop.py:35)
  branch is_gift: reads auth.user
    then
      note: reads auth.user  (shop.py:35)
  pivot
    render: reads payment, gift?  (shop.py:49)

effects
  payments.charge, a write in payment.charge, compensated  (shop.py:32)
    policy          timeout 0.8 (effect); retries 2 (effect); backoff 0.2 (kind); backoff_cap 1 (target)
    target          payments
"""

TAIL = """
targets
  payments: breaker none, bulkhead auto, retry_ratio 0.1

limits of admission
  running             4 to 400
  queued              2000
  degraded            16
  tenant_part         0.8

limits of the HTTP server
  head.start_line     8192
"""


def explained(folder: Path, *arguments: str) -> Any:
    ended = zerver(folder, "explain", "shop:app", *arguments, "--json", shop=SHOP)
    assert (ended.status, ended.err) == (0, "")
    return json.loads(ended.out)


# ---- what is said ---------------------------------------------------------------------------


def test_it_is_a_page_to_read(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "explain", "shop:app", "post", "/orders/7/pay", shop=SHOP)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(HEAD)
    assert (
        "    policy          timeout 5 (compensation); retries 0 (flow); "
        "backoff 0.05 (compensation); backoff_cap 1 (target)" in ended.out
    )
    assert TAIL in ended.out


def test_a_step_says_where_it_runs_and_a_fixed_limit_that_it_is_one(tmp_path: Path) -> None:
    shop = (
        SHOP.replace("@step\ndef wrap", '@step(offload="thread")\ndef wrap')
        .replace("    policy=Policy(backoff_cap=9.0),", "    admission=AdmissionPolicy(running=7),")
        .replace("import App,", "import AdmissionPolicy, App,")
    )
    ended = zerver(tmp_path, "explain", "shop:app", "GET", "/orders/7", shop=shop)
    assert (ended.status, ended.err) == (0, "")
    assert "\n    wrap: reads auth.user; writes gift?; runs in a thread  (shop.py:40)\n" in ended.out
    assert "\n  running             7\n" in ended.out
    assert "\na step          may take 10 ms; " in ended.out


def test_what_others_may_be_asked_is_answered_by_the_server(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "explain", "shop:app", "OPTIONS", "/orders/7", shop=SHOP)
    assert ended.status == 0
    assert ended.out == "OPTIONS /orders/7 → answered by the server itself, with Allow: GET, HEAD, OPTIONS\n"
    assert explained(tmp_path, "OPTIONS", "/orders/7")["allow"] == ["GET", "HEAD", "OPTIONS"]


def test_a_routes_own_path_names_it_too(tmp_path: Path) -> None:
    assert explained(tmp_path, "GET", "/orders/{id:int}") == explained(tmp_path, "GET", "/orders/7")


def test_json_has_all_of_it(tmp_path: Path) -> None:
    told = explained(tmp_path, "HEAD", "/orders/7", "--limit", "body=10MiB")
    assert told["route"] == "GET /orders/{id:int}"
    assert told["priority"] == {"value": "default", "by": "route"}
    assert told["on_disconnect"] == {"value": "cancel", "by": "method"}
    assert (told["patience"], told["budget"]) == (0.25, 0.01)
    assert (told["admission"]["running"], told["admission"]["queued"]) == ([4, 400], 2000)
    assert told["limits"]["body"] == 10 * 1024 * 1024
    assert [line["name"] for line in told["stages"] if line["chain"]] == ["auth.verify"]
    assert told["effects"][0]["policy"]["timeout"] == {"value": 0.8, "by": "effect"}
    assert told["effects"][1]["handed_on"]
    assert told["effects"][0]["rule"]["retry_ratio"] == 0.1


def test_tenants_are_those_of_the_file_or_else_of_the_app(tmp_path: Path) -> None:
    told = explained(tmp_path, "POST", "/orders/7/pay", "--tenant", "acme")
    assert told["priority"] == {"value": "batch", "by": "tenant acme"}
    assert (told["tenant"]["by"], told["tenant"]["rule"]["runs"]) == ("its own rule", 3)
    (tmp_path / "tenants.toml").write_text("[default]\nrate = 5\n")
    told = explained(tmp_path, "POST", "/orders/7/pay", "--tenant", "acme", "--tenants", "tenants.toml")
    assert told["priority"] == {"value": "interactive", "by": "flow"}
    assert (told["tenant"]["by"], told["tenant"]["rule"]["rate"]) == ("the default", 5)


def test_what_is_mounted_knows_itself(tmp_path: Path) -> None:
    assert explained(tmp_path, "GET", "/old/x")["mount"] == "/old"
    ended = zerver(tmp_path, "explain", "shop:app", "GET", "/old/x", shop=SHOP)
    assert ended.out == "GET /old/x → the application mounted at /old: what it does, it knows itself\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("POST", "/order/7/pay"), "no route takes POST /order/7/pay; near are: POST /orders/{id:int}/pay"),
        (("GET", "/orders/7/pay"), "/orders/7/pay takes no GET; it takes OPTIONS, POST"),
        (("PURGE", "zzz"), "no route takes PURGE zzz; there are 2 routes: see `zerver routes`"),
        (("GET", "/%zz"), "/%zz is no path: "),
        (("GET", "/orders/7", "--limit", "x=1"), "--limit x=1: there is no limit 'x'"),
        (("GET", "/orders/7", "--tenants", "no.toml"), "no.toml: No such file or directory; name a file"),
    ],
)
def test_what_leads_nowhere_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ended = zerver(tmp_path, "explain", "shop:app", *arguments, shop=SHOP)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"Error: {said}")


def test_an_app_that_cannot_work_is_told_of(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "explain", "broken:app", "GET", "/items", broken=BROKEN)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("DefinitionError: route GET /items: ")


# ---- what is said is what is done -----------------------------------------------------------


@effect(kind="ping.send", access="read", policy=Policy(timeout=3.0))
async def ping() -> None:
    pass


@step
async def send() -> Done:
    await ping().with_policy(retries=2)
    return Done()


PINGS = App(
    policy=Policy(backoff_cap=7.0),
    targets={"ping": Target(policy=Policy(backoff=0.5))},
    tenants=Tenants({"slow": Tenant(priority="batch")}),
)
PINGS.route("GET", "/ping", Flow("ping", [send], policy=Policy(retries=1), priority="interactive"))
PINGS.route("POST", "/ping", Flow("pong", [send]), priority="default")
PINGS.route("PUT", "/ping", Flow("pang", [send], on_disconnect="cancel"))


async def test_levels_are_those_of_the_interpreter() -> None:
    (route, *_) = PINGS.routes
    made = ping().with_policy(retries=2)
    async with open_runtime(PINGS) as runtime:
        theirs = runtime.interpreter.levels(route.flow.policy, made)
        policy = runtime.interpreter.way(route.flow.policy, made).policy
    ours = policy_levels(PINGS, route.flow.policy, ping.policy, PINGS.targets["ping"], Policy(retries=2))
    assert ours == theirs
    (line,) = explain_route(PINGS, route, PINGS.tenants, "x", {}).effects
    assert Policy(**{name: said.value for name, said in line.policy.items()}) == policy
    assert {name: said.by for name, said in line.policy.items()} == {
        "timeout": "kind", "retries": "effect", "backoff": "target", "backoff_cap": "app",
    }  # fmt: skip


def test_classes_and_disconnects_are_those_of_the_edge() -> None:
    router = compile_routes(PINGS)
    for route in PINGS.routes:
        found = router.find(RequestHead(route.method, route.path))
        assert isinstance(found, Match)
        told = explain_route(PINGS, route, Tenants(), "x", {})
        assert told.priority.value == found.payload.priority
        assert (told.on_disconnect.value == "cancel") is found.payload.is_watched(route.method)
    assert explain_route(PINGS, PINGS.routes[0], PINGS.tenants, "slow", {}).priority.value == "batch"


def test_idempotency_is_said(tmp_path: Path) -> None:
    shop = SHOP.replace("deadline=2.0,", 'deadline=2.0, idempotency="required", idempotency_expires=3600.0,')
    shop = shop.replace('app.route("GET", "/orders/{id:int}", pay, priority="default")\n', "")
    ended = zerver(tmp_path, "explain", "shop:app", "POST", "/orders/7/pay", shop=shop)
    assert "idempotency     a key is required; answers are kept for 3600 s\n" in ended.out
