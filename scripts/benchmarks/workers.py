"""Two workers beside one, of Zerver and of its peers: how much more they answer, and what a request then costs.

The load generator shares the two cores with the workers, so that two of them never have both cores to themselves: the
rates understate what a second worker gives. CPU per request says what the workers take from one another. Needs `wrk`.
Takes 50 seconds.
"""

from __future__ import annotations

from _load import Ask
from _rates import arguments, granian, present, rates, uvicorn, zerver
from _report import write_json

BOTH = "0,1"
CASES = {"plaintext": Ask("/plain"), "three steps and an effect": Ask("/steps/7")}
SERVERS = ("zerver", "granian, raw ASGI", "uvicorn, raw ASGI")
SYSTEMS = [
    system
    for count, said in ((2, "two workers"), (1, "one worker"))
    for system in (
        zerver(f"zerver, {said}", "zerver_app:app", "--workers", str(count), cores=BOTH),
        granian(f"granian, raw ASGI, {said}", "asgi", "asgi_raw:app", "--workers", str(count), cores=BOTH),
        uvicorn(f"uvicorn, raw ASGI, {said}", "asgi_raw:app", options=("--workers", str(count)), cores=BOTH),
    )
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    figures = rates(present(SYSTEMS, options), CASES, options)
    for it in figures:
        medians = {name: values["median"] for name, values in it["systems"].items()}
        ratios = [
            f"{server} {medians[f'{server}, two workers'] / medians[f'{server}, one worker']:.2f}x"
            for server in SERVERS
            if f"{server}, one worker" in medians
        ]
        print(f"{it['case']}, two workers to one: {'; '.join(ratios)}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
