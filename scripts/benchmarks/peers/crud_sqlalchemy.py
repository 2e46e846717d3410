"""An item is made, read, changed and deleted, on FastAPI with SQLAlchemy's async sessions. DATABASE: its URL."""

import os
from typing import Annotated

from crud_items import Item
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ["DATABASE"]
engine = create_async_engine(URL, pool_size=10, max_overflow=0, pool_timeout=60)
make_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()

if URL.startswith("sqlite"):

    @event.listens_for(engine.sync_engine, "connect")
    def as_zerver_has_it(connection, _):
        for said in ("journal_mode = wal", "synchronous = full", "busy_timeout = 30000"):
            connection.execute(f"pragma {said}")


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    quantity: Mapped[int]


async def session():
    async with make_session() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@app.post("/crud")
async def crud(session: Session) -> Item:
    made = Row(name="new", quantity=1)
    session.add(made)
    await session.commit()
    found = (await session.execute(select(Row).where(Row.id == made.id))).scalar_one()
    shown = Item.model_validate(found)
    found.quantity += 1
    await session.commit()
    await session.delete(found)
    await session.commit()
    return shown


@app.get("/items/{id}")
async def show(id: int, session: Session) -> Item:
    found = await session.get(Row, id)
    if found is None:
        raise HTTPException(404)
    return Item.model_validate(found)
