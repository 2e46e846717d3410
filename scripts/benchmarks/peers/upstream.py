"""Five services in one process, each on an address of its own: an answer of JSON, 5 ms after the request, with a Date
as of all servers, so that no client sees the same bytes for ever. Beyond loopback, this is all that a backend for
frontends waits for. They are at --port, which was found to be free; the ports beside it may not be.
"""

import argparse
import asyncio
import json
import time
from email.utils import formatdate
from functools import lru_cache, partial

HOSTS = [f"127.0.0.{number}" for number in range(1, 6)]  # all of 127.0.0.0/8 is loopback, on Linux
WAIT_SECONDS = 0.005


@lru_cache(maxsize=len(HOSTS))
def answer(number: int, second: int) -> bytes:
    body = json.dumps({"service": number, "values": [{"id": i, "name": f"value {i}"} for i in range(5)]}).encode()
    fields = f"Date: {formatdate(second, usegmt=True)}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + body


class Answering(asyncio.Protocol):
    """Nobody pipelines here: whole heads are counted, and not read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            asyncio.get_running_loop().call_later(WAIT_SECONDS, self.answer)

    def answer(self) -> None:
        self.transport.write(answer(self.number, int(time.time())))


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    for number, host in reversed(list(enumerate(HOSTS))):  # the first last: who can connect to it finds all of them
        await loop.create_server(partial(Answering, number), host, port, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(main(parser.parse_args().port))
