"""The same on quart-trio."""

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
