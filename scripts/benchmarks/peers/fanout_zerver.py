"""A page of five services' answers, on Zerver: five effects, joined. UPSTREAM: their port."""

import os
from typing import Annotated

import attrs
from upstream import HOSTS

from zerver import App, Done, Flow, Slot, join, step
from zerver.effects import http
from zerver.http import ClientLimits, http_client, json

UPSTREAM = int(os.environ["UPSTREAM"])
URLS = [f"http://{host}:{UPSTREAM}/part" for host in HOSTS]


@attrs.frozen
class Value:
    id: int
    name: str


@attrs.frozen
class Part:
    service: int
    values: list[Value]


Parts = Annotated[list[Part], Slot("parts")]


@step
async def ask() -> Parts:
    replies = await join.all(*(http.get(url).with_policy(timeout=2.0) for url in URLS))
    return [reply.json(Part) for reply in replies]


@step
def render(parts: Parts) -> Done:
    return Done(json({"parts": parts}))


app = App(capabilities=[http_client(allow_private=True, limits=ClientLimits(per_origin=100, total=500))])
app.route("GET", "/page", Flow("page", [ask, render], deadline=5.0))
