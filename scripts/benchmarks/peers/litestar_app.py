"""The four cases on Litestar, with its dependencies as the steps. It reads attrs classes itself, with msgspec."""

from litestar import Litestar, MediaType, get, post
from litestar.di import Provide
from orders import AREAS, Order


@get("/plain", media_type=MediaType.TEXT)
async def plain() -> str:
    return "Hello, world!"


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


async def add_up(user: dict) -> int:
    return user["id"] * 2


@get("/steps/{id:int}", dependencies={"user": Provide(find_user), "total": Provide(add_up)})
async def steps(user: dict, total: int) -> dict:
    return {"user": user, "total": total}


@post("/echo", status_code=200)
async def echo(data: Order) -> Order:
    return data


@get([f"/area{number}/{{id:int}}" for number in range(AREAS)], media_type=MediaType.TEXT)
async def part(id: int) -> str:
    return str(id)


app = Litestar([plain, steps, echo, part], openapi_config=None)
