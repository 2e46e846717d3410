"""An item is made, read, changed and deleted, on FastAPI with aiosqlite: a connection that writes, in turn, and one
that reads. DATABASE: the file.
"""

import asyncio
import os
from contextlib import asynccontextmanager

import aiosqlite
from crud_items import Item
from fastapi import FastAPI, HTTPException


@asynccontextmanager
async def lifespan(app):
    path = os.environ["DATABASE"]
    async with aiosqlite.connect(path) as app.state.writing, aiosqlite.connect(path) as app.state.reading:
        for db in (app.state.writing, app.state.reading):
            await db.execute("pragma journal_mode = wal")
            await db.execute("pragma synchronous = full")
        app.state.turn = asyncio.Lock()
        yield


app = FastAPI(lifespan=lifespan)


async def write(statement, *params):
    """One transaction; the last row's id."""
    async with app.state.turn:
        cursor = await app.state.writing.execute(statement, params)
        await app.state.writing.commit()
        return cursor.lastrowid


async def read(id):
    async with app.state.reading.execute("select id, name, quantity from items where id = ?", (id,)) as cursor:
        found = await cursor.fetchone()
    if found is None:
        raise HTTPException(404)
    return Item(id=found[0], name=found[1], quantity=found[2])


@app.post("/crud")
async def crud() -> Item:
    id = await write("insert into items (name, quantity) values (?, ?)", "new", 1)
    found = await read(id)
    await write("update items set quantity = ? where id = ?", found.quantity + 1, id)
    await write("delete from items where id = ?", id)
    return found


@app.get("/items/{id}")
async def show(id: int) -> Item:
    return await read(id)
