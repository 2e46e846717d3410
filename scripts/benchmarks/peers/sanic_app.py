"""The four cases on Sanic, which brings no validation: msgspec's."""

import msgspec
from orders import AREAS, Order
from sanic import Sanic, json, raw, text

app = Sanic("bench")
ORDERS = msgspec.json.Decoder(Order)


@app.get("/plain")
async def plain(request):
    return text("Hello, world!")


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


@app.get("/steps/<id:int>")
async def steps(request, id):
    user = await find_user(id)
    return json({"user": user, "total": user["id"] * 2})


@app.post("/echo")
async def echo(request):
    return raw(msgspec.json.encode(ORDERS.decode(request.body)), content_type="application/json")


async def part(request, id):
    return text(str(id))


for number in range(AREAS):
    app.add_route(part, f"/area{number}/<id:int>", name=f"part{number}")
