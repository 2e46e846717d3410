"""The four cases on BlackSheep, with the steps as calls. Its binder validates with pydantic."""

from blacksheep import Application, FromJSON, json, text
from orders import AREAS
from pydantic_orders import Order

app = Application()


@app.router.get("/plain")
async def plain():
    return text("Hello, world!")


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


@app.router.get("/steps/{id}")
async def steps(id: int):
    user = await find_user(id)
    return json({"user": user, "total": user["id"] * 2})


@app.router.post("/echo")
async def echo(order: FromJSON[Order]):
    return json(order.value)


def part():
    async def handler(id: int):
        return text(str(id))

    return handler


for number in range(AREAS):
    app.router.add_get(f"/area{number}/{{id}}", part())
