"""The four cases on Starlette, which brings no validation: msgspec's."""

import msgspec
from orders import AREAS, Order
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


async def plain(request):
    return PlainTextResponse("Hello, world!")


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


async def steps(request):
    user = await find_user(int(request.path_params["id"]))
    return JSONResponse({"user": user, "total": user["id"] * 2})


ORDERS = msgspec.json.Decoder(Order)


async def echo(request):
    return Response(msgspec.json.encode(ORDERS.decode(await request.body())), media_type="application/json")


async def part(request):
    return PlainTextResponse(str(int(request.path_params["id"])))


app = Starlette(
    routes=[
        Route("/plain", plain),
        Route("/steps/{id}", steps),
        Route("/echo", echo, methods=["POST"]),
        *(Route(f"/area{number}/{{id}}", part) for number in range(AREAS)),
    ]
)
