"""The four cases on quart-trio, which brings no validation: msgspec's."""

import msgspec
from orders import AREAS, Order
from quart import request
from quart_trio import QuartTrio

app = QuartTrio(__name__)


@app.get("/plain")
async def plain():
    return "Hello, world!", 200, {"Content-Type": "text/plain"}


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


@app.get("/steps/<int:id>")
async def steps(id):
    user = await find_user(id)
    return {"user": user, "total": user["id"] * 2}


ORDERS = msgspec.json.Decoder(Order)


@app.post("/echo")
async def echo():
    order = ORDERS.decode(await request.get_data())
    return msgspec.json.encode(order), 200, {"Content-Type": "application/json"}


async def part(id):
    return str(id), 200, {"Content-Type": "text/plain"}


for number in range(AREAS):
    app.get(f"/area{number}/<int:id>", endpoint=f"part{number}")(part)
