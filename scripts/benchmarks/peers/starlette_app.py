"""The same on Starlette."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route


async def plain(request):
    return PlainTextResponse("Hello, world!")


async def find_user(id: int) -> dict:
    return {"id": id, "name": f"user {id}"}


async def steps(request):
    user = await find_user(int(request.path_params["id"]))
    return JSONResponse({"user": user, "total": user["id"] * 2})


app = Starlette(routes=[Route("/plain", plain), Route("/steps/{id}", steps)])
