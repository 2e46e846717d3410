"""A backend for frontends: a request asks five services at once, each of which answers after 5 ms, and puts together
what they say. The services are one process, on the core of the load. Needs `wrk`. Takes half a minute.
"""

from __future__ import annotations

import sys

from _load import Ask
from _rates import arguments, hypercorn, present, rates, uvicorn, zerver
from _report import is_installed, write_json
from _server import serving

PAGE = {"five services of 5 ms each": Ask("/page")}


def main() -> None:
    options = arguments(__doc__, seconds=1.0, connections=32).parse_args()
    with serving((sys.executable, "upstream.py"), cores="1") as (port, _):
        asked = {"UPSTREAM": str(port)}
        ours = "httpx2" if is_installed("httpx2") else "httpx"
        systems = [
            zerver("zerver", "fanout_zerver:app", env=asked),
            uvicorn("fastapi, aiohttp", "fanout_fastapi:app", "fastapi", "aiohttp", env={**asked, "CLIENT": "aiohttp"}),
            uvicorn("fastapi, httpx", "fanout_fastapi:app", "fastapi", "httpx", env={**asked, "CLIENT": "httpx"}),
            hypercorn(
                f"quart-trio, {ours}", "fanout_quart:app", "quart-trio", ours, env={**asked, "CLIENT": ours}
            ),
        ]  # fmt: skip
        write_json(options.json, rates(present(systems, options), PAGE, options))


if __name__ == "__main__":
    main()
