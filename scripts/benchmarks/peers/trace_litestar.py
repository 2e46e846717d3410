"""The three steps of `litestar_app` with the spans of `spans`."""

import spans
from litestar import Litestar, get
from litestar.di import Provide


@get("/steps/{id:int}", dependencies={"user": Provide(spans.load), "total": Provide(spans.add_up)})
async def steps(user: dict, total: int) -> dict:
    return spans.render(user, total)


traced = spans.Traced(Litestar([steps], openapi_config=None))
