"""The same on FastAPI, with its dependencies as the steps."""

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse

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
