"""Scenarios: what is offered to one worker, what goes wrong, and what may be measured; read from TOML.

Law: a scenario is data. It names no policy's inside, so every policy gets the same load, and what is allowed stands
beside the load that asks for it (Vector's adaptive-concurrency tests are the pattern). Times are seconds; loads are
shares of the worker's CPU.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import attrs
import cattrs

from zerver.core.priorities import Priority

FOLDER = Path(__file__).parent / "scenarios"
#: The flows that scenarios take by name; a scenario may change them or add its own.
COMMON = Path(__file__).parent / "flows.toml"


@attrs.frozen(kw_only=True)
class FlowSpec:
    """Steps of CPU with a wait between each two. share: of the offered CPU. spread: sigma of the lognormal waits.

    breathes: whether its steps can hand on their turn in the middle.
    """

    priority: Priority
    steps: tuple[float, ...]
    waits: tuple[float, ...]
    share: float
    deadline: float
    dependency: str = ""
    spread: float = 0.4
    breathes: bool = False

    @property
    def cpu(self) -> float:
        return sum(self.steps)


@attrs.frozen(kw_only=True)
class TenantSpec:
    """load: of the worker's CPU. count: so many alike. flows: shares in place of the scenario's. active: when."""

    name: str = "default"
    load: float = 1.0
    weight: float = 1.0
    count: int = 1
    flows: dict[str, float] | None = None
    active: tuple[tuple[float, float], ...] = ((0.0, float("inf")),)

    @property
    def names(self) -> list[str]:
        return [self.name] if self.count == 1 else [f"{self.name}-{number + 1}" for number in range(self.count)]


@attrs.frozen(kw_only=True)
class Phase:
    """From `at` on, every tenant offers `load` times what it is said to."""

    at: float
    load: float


@attrs.frozen(kw_only=True)
class Fault:
    """The worker's CPU ("capacity") or the waits of a dependency, times `factor`, for a while."""

    kind: Literal["capacity", "dependency"]
    at: float
    seconds: float
    factor: float
    name: str = ""

    @property
    def end(self) -> float:
        return self.at + self.seconds


@attrs.frozen(kw_only=True)
class Retries:
    """What clients do when they are refused or have waited too long: `attempts` more, after U(0, backoff * 2^n).

    budget: whether all clients together keep to one retry budget.
    """

    attempts: int = 3
    backoff: float = 0.1
    budget: bool = False


@attrs.frozen(kw_only=True)
class Scenario:
    """One file. window: when is measured. pooled: the figures are of all seeds together, not of each."""

    name: str
    title: str
    seconds: float
    flows: dict[str, FlowSpec]
    allowed: dict[str, tuple[float, float]]
    window: tuple[float, float]
    ingress: float = 20e-6
    tenants: tuple[TenantSpec, ...] = (TenantSpec(),)
    phases: tuple[Phase, ...] = (Phase(at=0.0, load=1.0),)
    faults: tuple[Fault, ...] = ()
    retries: Retries | None = None
    pooled: bool = False
    failed: tuple[str, ...] = ()  # designs that failed on the way: they must fail it still


def load(path: Path) -> Scenario:
    """Read one scenario. Raises cattrs.ClassValidationError for what no scenario has."""
    given: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    common: dict[str, Any] = tomllib.loads(COMMON.read_text(encoding="utf-8"))
    flows = {name: common.get(name, {}) | changes for name, changes in given.pop("flows", {}).items()}
    given |= {"name": path.stem, "flows": flows or common}
    given.setdefault("window", [0.2 * given["seconds"], given["seconds"]])
    return _converter.structure(given, Scenario)


def load_all() -> dict[str, Scenario]:
    """All scenarios, in the order of their files' names."""
    return {path.stem: load(path) for path in sorted(FOLDER.glob("*.toml"))}


_converter = cattrs.Converter(forbid_extra_keys=True)
