"""The four cases on Zerver, all of it on the timeline; the three steps are a flow, and the effect is one of its own."""

from typing import Annotated

import attrs
import trio
from orders import AREAS, Order

from zerver import App, Done, Flow, Slot, effect, step
from zerver.http import Body, Path, json, text


@attrs.frozen
class User:
    id: int
    name: str


Found = Annotated[User, Slot("user")]
Total = Annotated[int, Slot("total")]


@effect(kind="users.find", access="read")
async def find_user(id: int) -> User:
    await trio.lowlevel.checkpoint()
    return User(id, f"user {id}")


@step
def plain() -> Done:
    return Done(text("Hello, world!"))


@step
async def load(id: Annotated[int, Path()]) -> Found:
    return await find_user(id)


@step
def add_up(user: Found) -> Total:
    return user.id * 2


@step
def render(user: Found, total: Total) -> Done:
    return Done(json({"user": user, "total": total}))


@step
def echo(order: Annotated[Order, Body()]) -> Done:
    return Done(json(order))


@step
def part(id: Annotated[int, Path()]) -> Done:
    return Done(text(str(id)))


app = App()
app.route("GET", "/plain", Flow("plain", [plain], deadline=5.0))
app.route("GET", "/steps/{id}", Flow("steps", [load, add_up, render], deadline=5.0))
app.route("POST", "/echo", Flow("echo", [echo], deadline=5.0))
PART = Flow("part", [part], deadline=5.0)
for number in range(AREAS):
    app.route("GET", f"/area{number}/{{id}}", PART)
