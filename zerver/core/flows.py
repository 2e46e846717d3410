"""Flows: named, versioned DAGs of stages, checked when they are built.

Law: a Flow that exists is a flow that can run. Its constructor raises DefinitionError for whatever the checker finds;
what depends on the app around it (handlers, before-chains) is checked by the App.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

from zerver.core.check import check_flow
from zerver.core.graph import Graph, draw
from zerver.core.policy import Policy
from zerver.core.priorities import PRIORITIES, Priority
from zerver.core.signatures import slot_of
from zerver.core.stages import Block, Stage, as_stages
from zerver.errors import DefinitionError

#: "cancel" ends the run when the client has gone, "finish" lets it go on; None: as the method says (safe ones cancel).
OnDisconnect = Literal["cancel", "finish"]

#: Whether a request must bring an `Idempotency-Key`, or may.
Idempotency = Literal["required", "optional"]

#: Seconds for which answers are kept, as Stripe keeps them.
DAY: Final = 86_400.0

#: How far a run survives its process: "off" not at all; "async" but for its last moments; "sync" whole.
Durability: TypeAlias = Literal["off", "async", "sync"]

#: What becomes of a "sync" run whose process has died: it goes on from where it was, or is undone.
OnCrash: TypeAlias = Literal["resume", "compensate"]


#: What becomes of a "sync" run whose process has died, when its version of the flow is not known any more.
OnUpgrade: TypeAlias = Literal["resume", "compensate"]


class Flow(Block):
    """A flow: a name, its stages, and how a run of it is treated. A flow is a stage too.

    before: a chain of stages that runs first. takes, gives: slots that the caller brings, or gets as the result when no
    step returns Done. deadline: seconds for the whole run; as a stage, for the effects inside it.
    undo_deadline: seconds that compensations may take, after the run's own time. policy: for every effect in it.
    on_error: a pure function from the run's Result to a response value, when the run did not succeed.
    degrade: a cheaper flow that runs when admission refuses this one, as one that answers from a cache; a few at once,
    and then the refusal stands. Behind a route its before-chain is the route's.
    idempotency: whether requests that come over HTTP bring an `Idempotency-Key`: "required", "optional", or None, when
    the header means nothing. The same request with the same key then gets the same answer, and is carried out once.
    idempotency_expires: seconds for which an answer is kept.
    durability: how far a run survives its process; anything but "off" needs a journal. "sync": the intent of each write
    is on the disk before it starts, and its outcome before the next one starts, or the answer leaves; nothing that was
    answered is lost, and nothing is done twice unknown. "async": the same records, written behind; the last moments
    before a crash are lost.
    on_crash: what becomes of a "sync" run whose process has died. on_upgrade: what becomes of one that began with
    another version of this flow, which the app does not know any more (see `App(older=…)`): "resume" leads this one
    along its records and goes on if they agree; "compensate" undoes what it did.

    Raises DefinitionError when the stages cannot work together.
    """

    __slots__ = (
        "before",
        "degrade",
        "durability",
        "idempotency",
        "idempotency_expires",
        "on_crash",
        "on_disconnect",
        "on_error",
        "on_upgrade",
        "owner",
        "policy",
        "priority",
        "undo_deadline",
        "version",
    )

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        *,
        before: Sequence[Stage] = (),
        takes: Sequence[Any] = (),
        gives: Sequence[Any] = (),
        version: str = "1",
        owner: str | None = None,
        priority: Priority = "default",
        deadline: float | None = None,
        undo_deadline: float = 10.0,
        policy: Policy | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_error: Callable[[Any], object] | None = None,
        degrade: Flow | None = None,
        durability: Durability = "off",
        on_crash: OnCrash = "resume",
        on_upgrade: OnUpgrade = "resume",
        idempotency: Idempotency | None = None,
        idempotency_expires: float = DAY,
    ) -> None:
        if not name:
            raise DefinitionError("a flow has no name", 'name it like "checkout"')
        where = f"flow {name!r}"
        if priority not in PRIORITIES:
            raise DefinitionError(
                f"{where}: priority {priority!r} is unknown", f"choose one of {', '.join(PRIORITIES)}"
            )
        for label, seconds in (("deadline", deadline), ("undo_deadline", undo_deadline)):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise DefinitionError(f"{where}: {label}={seconds!r}", "give seconds above 0, or None for no deadline")
        self.before = as_stages(where, before)
        super().__init__(
            name,
            (*self.before, *as_stages(where, stages)),
            [slot_of(alias) for alias in takes],
            [slot_of(alias) for alias in gives],
            deadline,
        )
        if not self.stages:
            raise DefinitionError(f"{where} has no stages", "give it at least one step")
        self.version = version
        self.owner = owner
        self.priority: Priority = priority
        self.undo_deadline = undo_deadline
        self.policy = policy
        self.on_disconnect = on_disconnect
        self.on_error = on_error
        self.degrade = degrade
        self.durability: Durability = durability
        self.on_crash: OnCrash = on_crash
        self.on_upgrade: OnUpgrade = on_upgrade
        self.idempotency: Idempotency | None = idempotency
        self.idempotency_expires = idempotency_expires
        _check_durability(where, durability, on_crash, on_upgrade)
        _check_idempotency(where, idempotency, idempotency_expires)
        check_on_error(where, on_error)
        _check_degrade(where, degrade)
        check_flow(self)

    def graph(self) -> Graph:
        """The flow as a picture: `.mermaid()` and `.dot()`."""
        return draw(self)

    def __repr__(self) -> str:
        return f"<flow {self.name} v{self.version}, {len(self.stages)} stages>"


def check_on_error(where: str, on_error: Callable[[Any], object] | None) -> None:
    """A function that renders failures must be plain: the run is over, and there is nobody left to await."""
    check_plain(f"{where}: on_error", on_error)


def check_plain(where: str, function: object) -> None:
    """It is None, or a function that need not be awaited. Raises DefinitionError."""
    if inspect.iscoroutinefunction(function):
        raise DefinitionError(f"{where} is a coroutine function", "write it as a plain `def`")
    if function is not None and not callable(function):
        raise DefinitionError(f"{where} is {function!r}", "give it a plain function, or leave it out")


def check_older(where: str, older: Sequence[Flow]) -> tuple[Flow, ...]:
    """Older versions of flows, each of which can have left runs behind. Raises DefinitionError."""
    seen: set[tuple[str, str]] = set()
    for flow in older:
        if not isinstance(flow, Flow):
            raise DefinitionError(f"{where}: older=[{flow!r}] is not a flow", 'give it Flow("name", [steps])')
        if flow.durability == "off":
            raise DefinitionError(
                f"{where}: older flow {flow.name!r} v{flow.version} has durability='off': no run of it is stored",
                "give it the durability that it had, or leave it out",
            )
        if (flow.name, flow.version) in seen:
            raise DefinitionError(
                f"{where}: older=[…] has flow {flow.name!r} v{flow.version} twice",
                'give each the version that it had: Flow("name", …, version="1")',
            )
        seen.add((flow.name, flow.version))
    return tuple(older)


def _check_durability(where: str, durability: object, on_crash: object, on_upgrade: object) -> None:
    for label, given, known in (
        ("durability", durability, get_args(Durability)),
        ("on_crash", on_crash, get_args(OnCrash)),
        ("on_upgrade", on_upgrade, get_args(OnUpgrade)),
    ):
        if given not in known:
            raise DefinitionError(f"{where}: {label}={given!r} is unknown", f"choose one of {', '.join(known)}")
    for label, given in (("on_crash", on_crash), ("on_upgrade", on_upgrade)):
        if given == "compensate" and durability != "sync":
            raise DefinitionError(
                f"{where}: {label}='compensate' with durability={durability!r}: nobody could know what to undo",
                f"give it durability='sync', or leave {label} out",
            )


def _check_idempotency(where: str, idempotency: object, expires: float) -> None:
    if idempotency not in (None, "required", "optional"):
        raise DefinitionError(f"{where}: idempotency={idempotency!r}", 'give "required", "optional", or leave it out')
    if not 0 < expires < float("inf"):
        raise DefinitionError(f"{where}: idempotency_expires={expires!r}", "give seconds above 0, as 86400 for a day")


def _check_degrade(where: str, degrade: object) -> None:
    if degrade is not None and not isinstance(degrade, Flow):
        raise DefinitionError(f"{where}: degrade={degrade!r} is not a flow", 'give it Flow("name", [steps])')
    if isinstance(degrade, Flow) and degrade.degrade is not None:
        raise DefinitionError(
            f"{where}: its degrade flow {degrade.name!r} has a degrade flow too", "one step down is all there is"
        )
