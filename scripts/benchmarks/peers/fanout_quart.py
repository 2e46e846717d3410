"""A page of five services' answers, on quart-trio, with httpx2, or httpx where there is no httpx2. UPSTREAM: their
port.
"""

import importlib
import os

import trio
from quart_trio import QuartTrio
from upstream import HOSTS

httpx = importlib.import_module(os.environ["CLIENT"])
UPSTREAM = int(os.environ["UPSTREAM"])
URLS = [f"http://{host}:{UPSTREAM}/part" for host in HOSTS]

app = QuartTrio(__name__)
limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
client = httpx.AsyncClient(limits=limits, timeout=2.0)


@app.get("/page")
async def page():
    parts = [None] * len(URLS)

    async def ask(number):
        parts[number] = (await client.get(URLS[number])).json()

    async with trio.open_nursery() as nursery:
        for number in range(len(URLS)):
            nursery.start_soon(ask, number)
    return {"parts": parts}
