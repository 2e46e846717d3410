"""The three steps of `fastapi_app` with the spans of `spans`."""

from typing import Annotated

import spans
from fastapi import Depends, FastAPI

app = FastAPI()


async def add_up(user: Annotated[dict, Depends(spans.load)]) -> int:
    return await spans.add_up(user)


@app.get("/steps/{id}")
async def steps(user: Annotated[dict, Depends(spans.load)], total: Annotated[int, Depends(add_up)]):
    return spans.render(user, total)


traced = spans.Traced(app)
