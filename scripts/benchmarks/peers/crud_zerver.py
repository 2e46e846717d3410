"""An item is made, read, changed and deleted, on Zerver: four effects. DATABASE: a file, or a conninfo."""

import os
from typing import Annotated

import attrs

from zerver import App, Done, Fail, Flow, Slot, step
from zerver.effects import sql
from zerver.http import Path, json
from zerver.sql import postgres, sqlite

DATABASE = os.environ["DATABASE"]


@attrs.frozen
class Item:
    id: int
    name: str
    quantity: int


Id = Annotated[int, Slot("id")]
Made = Annotated[Item, Slot("made")]
Changed = Annotated[bool, Slot("changed")]


INSERT = "insert into items (name, quantity) values (?, ?) returning id"


@step
async def create() -> Id:
    (made,) = await sql.execute_returning(int, INSERT, "new", 1)
    return made


@step
async def read(id: Id) -> Made | Fail:
    found = await sql.fetch_one(Item, "select id, name, quantity from items where id = ?", id)
    return found or Fail.not_found("item", str(id))


@step
async def update(made: Made) -> Changed:
    changed = await sql.execute("update items set quantity = ? where id = ?", made.quantity + 1, made.id, expect=1)
    return changed == 1


@step
async def delete(made: Made, changed: Changed) -> Done:
    await sql.execute("delete from items where id = ?", made.id, expect=1)
    return Done(json(made))


@step
async def show(id: Annotated[int, Path()]) -> Done | Fail:
    found = await sql.fetch_one(Item, "select id, name, quantity from items where id = ?", id)
    return Done(json(found)) if found else Fail.not_found("item", str(id))


app = App(capabilities=[postgres(DATABASE, size=10) if "dbname=" in DATABASE else sqlite(DATABASE)])
app.route("POST", "/crud", Flow("crud", [create, read, update, delete], deadline=20.0))
app.route("GET", "/items/{id}", Flow("show", [show], deadline=20.0))
