"""The four cases on bare ASGI: nothing but what HTTP needs. The order is validated by msgspec."""

import json

import msgspec
from orders import AREAS, Order

ORDERS = msgspec.json.Decoder(Order)
KNOWN = {f"area{number}" for number in range(AREAS)}


async def body_of(receive):
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(path, read):
    """The body, and what it is; read: gives the request's body."""
    if path == "/plain":
        return b"Hello, world!", b"text/plain"
    if path == "/echo":
        return msgspec.json.encode(ORDERS.decode(await read())), b"application/json"
    area, _, last = path[1:].partition("/")
    if area in KNOWN:
        return str(int(last)).encode(), b"text/plain"
    user = {"id": 7, "name": "user 7"}
    return json.dumps({"user": user, "total": user["id"] * 2}).encode(), b"application/json"


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, kind = await answer(scope["path"], lambda: body_of(receive))
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
