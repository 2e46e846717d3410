"""An item is made, read, changed and deleted, on FastAPI with asyncpg. DATABASE: its URL."""

import os
from contextlib import asynccontextmanager

import asyncpg
from crud_items import Item
from fastapi import FastAPI, HTTPException


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE"], min_size=1, max_size=10) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)
SELECT = "select id, name, quantity from items where id = $1"


@app.post("/crud")
async def crud() -> Item:
    async with app.state.pool.acquire() as db:
        id = await db.fetchval("insert into items (name, quantity) values ($1, $2) returning id", "new", 1)
        found = Item(**await db.fetchrow(SELECT, id))
        await db.execute("update items set quantity = $1 where id = $2", found.quantity + 1, id)
        await db.execute("delete from items where id = $1", id)
        return found


@app.get("/items/{id}")
async def show(id: int) -> Item:
    async with app.state.pool.acquire() as db:
        found = await db.fetchrow(SELECT, id)
    if found is None:
        raise HTTPException(404)
    return Item(**found)
