"""A page of five services' answers, on FastAPI, with httpx or aiohttp (CLIENT). UPSTREAM: their port."""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI
from upstream import HOSTS

UPSTREAM = int(os.environ["UPSTREAM"])
URLS = [f"http://{host}:{UPSTREAM}/part" for host in HOSTS]


@asynccontextmanager
async def open_httpx():
    import httpx  # one client is installed where the other is measured, too, and not loaded

    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(limits=limits, timeout=2.0) as client:

        async def get(url):
            return (await client.get(url)).json()

        yield get


@asynccontextmanager
async def open_aiohttp():
    import aiohttp

    connector = aiohttp.TCPConnector(limit=500)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(2.0)) as client:

        async def get(url):
            async with client.get(url) as reply:
                return await reply.json()

        yield get


@asynccontextmanager
async def lifespan(app):
    async with {"httpx": open_httpx, "aiohttp": open_aiohttp}[os.environ["CLIENT"]]() as app.state.get:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/page")
async def page():
    return {"parts": await asyncio.gather(*(app.state.get(url) for url in URLS))}
