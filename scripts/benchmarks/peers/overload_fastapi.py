"""The overload benchmark's work on FastAPI."""

import asyncio

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from work import SHAPES, burn

app = FastAPI()


def serve(path: str, shape: str) -> None:
    slices, between = SHAPES[shape]

    @app.get(path, response_class=PlainTextResponse)
    async def work(cpu: float = 1.0, io: float = 1.0) -> str:
        for number, seconds in enumerate(slices):
            if number:
                await asyncio.sleep(between * io)
            burn(seconds * cpu)
        return "done"


for name in SHAPES:
    serve(f"/{name}", name)
serve("/dependent", "default")
