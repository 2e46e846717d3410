"""A page of five services' answers, on quart-trio, with httpx2, or httpx where there is no httpx2. UPSTREAM: the first
port.
"""

import importlib
import os

import trio
from quart_trio import QuartTrio
from upstream import SERVICES

httpx = importlib.import_module(os.environ["CLIENT"])
UPSTREAM = int(os.environ["UPSTREAM"])
URLS = [f"http://127.0.0.1:{UPSTREAM + number}/part" for number in range(SERVICES)]

app = QuartTrio(__name__)
limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
client = httpx.AsyncClient(limits=limits, timeout=2.0)


@app.get("/page")
async def page():
    parts = [None] * SERVICES

    async def ask(number):
        parts[number] = (await client.get(URLS[number])).json()

    async with trio.open_nursery() as nursery:
        for number in range(SERVICES):
            nursery.start_soon(ask, number)
    return {"parts": parts}
