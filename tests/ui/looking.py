"""A shop with a page, in memory: real HTTP, a real runtime, a recorder; and a browser's manners."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import attrs

from zerver import App, Done, Fail, Flow, Pause, Slot, effect, step
from zerver.core.codec import decode_json
from zerver.edge import open_edge
from zerver.http import Body, Header, json
from zerver.http.connection import Service, log_defect
from zerver.http.exchange import DEFAULT_LIMITS
from zerver.runtime import Result, open_runtime
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.journal import Journal
from zerver.testing.client import Client, Reply
from zerver.trace.recorder import Recorder, open_recorder
from zerver.trace.telemetry.instruments import MetricsSnapshot
from zerver.ui import Access, Archive, Page, Server

TOKEN = "correct-horse-battery-staple"
SECRET = "sk_live_4242424242"
HOST = "127.0.0.1:8000"

CardToken = Annotated[str, Slot("card.token", secret=True)]
Cart = Annotated[dict[str, Any], Slot("cart")]
Payment = Annotated[str, Slot("payment")]


@effect(kind="vault.token", access="read")
async def find_token(who: str) -> str:
    return SECRET


@effect(kind="payments.charge", access="write")
async def charge_card(cents: int, token: str) -> str:
    return f"ch_{cents}"


@effect(kind="payments.refund", access="write")
async def refund(charge: str) -> None:
    return None


@attrs.frozen
class Wish:
    cart: str
    cents: int = 1200
    stock: bool = True


@step
async def unlock(authorization: Annotated[str, Header()]) -> CardToken:
    return await find_token("user_1")


@step
def load(wish: Annotated[Wish, Body()]) -> Cart:
    return {"id": wish.cart, "cents": wish.cents, "stock": wish.stock}


@step
async def charge(cart: Cart, token: CardToken) -> Payment:
    return await charge_card(cart["cents"], token).compensate(refund)


@step
def reserve(cart: Cart) -> Fail | None:
    return None if cart["stock"] else Fail.conflict("cart", cart["id"], detail="sold out")


@step
def render(payment: Payment) -> Done:
    return Done(json({"payment": payment}, status=201))


@step
def wait() -> Pause:
    return Pause("approval", expires=3600.0)


@step
def approved() -> Done:
    return Done(json("approved"))


checkout = Flow("checkout", [unlock, load, charge, reserve, render], owner="payments")
waiting = Flow("waiting", [wait, approved])


def shop() -> App:
    app = App("shop")
    app.route("POST", "/checkout", checkout)
    app.route("GET", "/waiting", waiting)
    return app


class Browser:
    """Asks the page as a browser does that has opened it. cookie: "" before it has."""

    def __init__(self, client: Client, page: Page, recorder: Recorder) -> None:
        self.client = client
        self.page = page
        self.recorder = recorder
        self.cookie = ""
        self.csrf = ""

    async def enter(self) -> Browser:
        reply = await self.client.get(f"/_zerver/?token={TOKEN}", headers={"host": HOST})
        self.cookie = reply.headers["set-cookie"].partition(";")[0]
        self.csrf = (await self.json("session"))["csrf"]
        return self

    async def get(self, target: str, **headers: str) -> Reply:
        return await self.client.get(target, headers={"host": HOST, "cookie": self.cookie, **headers})

    async def json(self, path: str) -> Any:
        reply = await self.get(f"/_zerver/api/{path}")
        assert reply.status == 200, reply.text
        return decode_json(reply.body, Any)

    async def post(self, path: str, body: object, **headers: str) -> Reply:
        own: Mapping[str, str] = {
            "host": HOST,
            "origin": f"http://{HOST}",
            "cookie": self.cookie,
            "x-zerver-csrf": self.csrf,
            "content-type": "application/json",
        }
        return await self.client.post(f"/_zerver/api/{path}", json=body, headers={**own, **headers})

    async def buy(self, *, stock: bool = True, cents: int = 1200) -> Result:
        """A run of the shop, recorded."""
        body = {"cart": "cart_1", "cents": cents, "stock": stock}
        reply = await self.client.post("/checkout", json=body, headers={"authorization": f"Bearer {SECRET}x"})
        self.recorder.flush()
        assert reply.run is not None
        return reply.run


@asynccontextmanager
async def open_browser(
    *,
    app: App | None = None,
    archive: Archive | None = None,
    metrics: Callable[[], MetricsSnapshot] | None = None,
    journal: Journal | None = None,
    attached: bool = True,
    on_defect: Callable[[Exception], None] = log_defect,
) -> AsyncGenerator[Browser, None]:
    """The shop and a browser that has not opened its page yet."""
    runs: list[Result] = []
    defects: list[Exception] = []
    async with open_recorder() as recorder:
        page = Page(
            Access(TOKEN, clock=lambda: 1_800_000_000.0),
            recorder,
            archive=archive,
            metrics=metrics,
            on_defect=on_defect,
        )
        async with (
            open_runtime(app or shop(), observers=[runs.append, recorder.add], seed=1, journal=journal) as runtime,
            open_edge(runtime.app, runtime, on_defect=defects.append, beside={"/_zerver": page.handle}) as edge,
            open_body_nursery() as nursery,
        ):
            if attached:
                page.attach(Server(runtime, [f"http://{HOST}"]))
            service = Service(edge.handle, DEFAULT_LIMITS, defects.append)
            yield Browser(Client(runtime, service, nursery, runs, defects), page, recorder)
            nursery.cancel_scope.cancel()
        page.close()
    assert defects == []
