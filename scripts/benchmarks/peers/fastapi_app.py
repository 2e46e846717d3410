"""The four cases on FastAPI, with its dependencies as the steps."""

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from orders import AREAS
from pydantic_orders import Order

app = FastAPI()


@app.get("/plain", response_class=PlainTextResponse)
async def plain():
    return "Hello, world!"


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


async def total(user: Annotated[dict, Depends(find_user)]) -> int:
    return user["id"] * 2


@app.get("/steps/{id}")
async def steps(user: Annotated[dict, Depends(find_user)], total: Annotated[int, Depends(total)]):
    return {"user": user, "total": total}


@app.post("/echo")
async def echo(order: Order) -> Order:
    return order


async def part(id: int):
    return str(id)


for number in range(AREAS):
    app.get(f"/area{number}/{{id}}", response_class=PlainTextResponse)(part)
