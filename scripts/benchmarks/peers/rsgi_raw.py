"""The four cases of `asgi_raw` on RSGI, Granian's own interface."""

from asgi_raw import answer


async def app(scope, protocol):
    body, kind = await answer(scope.path, protocol)
    protocol.response_bytes(200, [("content-type", kind.decode())], body)
