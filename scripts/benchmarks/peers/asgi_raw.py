"""Plaintext and a three-step equivalent on bare ASGI."""

import json


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/plain":
        body, kind = b"Hello, world!", b"text/plain"
    else:
        user = {"id": 7, "name": "user 7"}
        body, kind = json.dumps({"user": user, "total": user["id"] * 2}).encode(), b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
