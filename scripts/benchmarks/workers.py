"""Two workers beside one, of Zerver and of its peers: how much more they answer, and what a request then costs.

Two workers and the load generator share two cores, so that the rates understate what a second worker gives. What can be
known here is said beside them: the most that these cores allow with this load, and by how much the CPU of a request
grows when two workers serve. Needs `wrk`. Takes 50 seconds.
"""

from __future__ import annotations

from _load import Ask
from _rates import Measured, arguments, granian, measurements, present, uvicorn, zerver
from _report import Figures, Table, figure, ranged, write_json

BOTH = "0,1"
CORES = 2
ONE, TWO = "one worker", "two workers"
CASES = {"plaintext": Ask("/plain"), "three steps and an effect": Ask("/steps/7")}
SERVERS = ("zerver", "granian, raw ASGI", "uvicorn, raw ASGI")
SYSTEMS = [
    system
    for count, said in ((2, TWO), (1, ONE))
    for system in (
        zerver(f"zerver, {said}", "zerver_app:app", "--workers", str(count), cores=BOTH),
        granian(f"granian, raw ASGI, {said}", "asgi", "asgi_raw:app", "--workers", str(count), cores=BOTH),
        uvicorn(f"uvicorn, raw ASGI, {said}", "asgi_raw:app", options=("--workers", str(count)), cores=BOTH),
    )
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    figures: Figures = []
    for case, found in measurements(present(SYSTEMS, options), CASES, options):
        figures += found.told(case)
        figures += scaling(case, found)
    write_json(options.json, figures)


def scaling(case: str, found: Measured) -> Figures:
    """Two workers to one, printed: each server's ratios, of the same round.

    at most: the ratio that these cores allow, if both are busy all the time with requests that cost two workers what
    they cost one, and with the load. CPU, one to two: below 1, a second worker makes each request dearer; twice this is
    what two workers could answer with a core for each and the load elsewhere, which nobody has measured here.
    """
    there = [it for it in SERVERS if f"{it}, {ONE}" in found.rate]
    tables: dict[str, Table] = {"rate": {}, "at most": {}, "CPU, one to two": {}}
    for it in there:
        one, two = f"{it}, {ONE}", f"{it}, {TWO}"
        rounds = zip(found.rate[one], found.rate[two], found.cpu[one], found.cpu[two], found.load[two], strict=True)
        for rate, rate_of_two, cpu, cpu_of_two, load in rounds:
            alone = max(rate, 1e6 / cpu)  # a core of its own; granian's one worker takes more than one
            tables["rate"].setdefault(it, []).append(rate_of_two / rate)
            tables["at most"].setdefault(it, []).append(CORES * 1e6 / (cpu + load) / alone)
            tables["CPU, one to two"].setdefault(it, []).append(cpu / cpu_of_two)
    print(f"| {case}, two workers to one | {' | '.join(tables)} | µs CPU of the load per request |")
    print("|---" * (len(tables) + 2) + "|")
    for it in there:
        cells = [ranged(table[it], 2) for table in tables.values()]
        print(f"| {' | '.join([it, *cells, ranged(found.load[f'{it}, {TWO}'], 1)])} |")
    print(flush=True)
    return [figure(f"{case}, two workers to one: {about}", "times", table) for about, table in tables.items()]


if __name__ == "__main__":
    main()
