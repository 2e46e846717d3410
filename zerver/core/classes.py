"""Classes: what admission promises to each of them, and with how many seats.

Law: values an operator may set; every default is one of `docs/explanation`'s figures, and none has to be set.
"""

from __future__ import annotations

import attrs

from zerver.core.concurrency import Seats
from zerver.core.priorities import GUARANTEES, Priority

_part = attrs.validators.and_(attrs.validators.gt(0.0), attrs.validators.le(1.0))


@attrs.frozen(kw_only=True)
class ClassPolicy:
    """What one class is promised, and what it may ask for.

    - share: the part of the CPU that is its own while it waits; floor: the part that it is believed to get at least,
      when it is estimated how long its queue takes.
    - patience: seconds after which a run that waits is answered, by a ticket or by a refusal.
    - slack: a run is queued as long as its estimated wait is under `slack` times `patience`.
    - sojourn: seconds; a queue that stands longer for a tenth of a second is overloaded. newest_first: serve the newest
      first then, as whoever asked long ago has given up, and at twice `sojourn` drop those who cannot make it.
    - standing: seconds of CPU that may stand waiting for a turn, of this class and those above, before fewer may run.
    """

    share: float = attrs.field(validator=_part)
    floor: float = attrs.field(validator=_part)
    patience: float = attrs.field(validator=attrs.validators.gt(0.0))
    slack: float = attrs.field(validator=attrs.validators.gt(0.0))
    sojourn: float = attrs.field(validator=attrs.validators.gt(0.0))
    newest_first: bool
    standing: float = attrs.field(validator=attrs.validators.gt(0.0))


INTERACTIVE = ClassPolicy(
    share=GUARANTEES[0], floor=0.70, patience=0.050, slack=1.5, sojourn=0.005, newest_first=True, standing=0.005
)
DEFAULT = ClassPolicy(
    share=GUARANTEES[1], floor=0.25, patience=0.250, slack=1.5, sojourn=0.020, newest_first=True, standing=0.008
)
BATCH = ClassPolicy(
    share=GUARANTEES[2], floor=0.05, patience=10.0, slack=0.8, sojourn=0.200, newest_first=False, standing=0.012
)


@attrs.frozen
class ClassStatistics:
    """What has become of it. running, queued: runs, now. limit: runs of this class and those above that may run at
    once. guaranteed: seats of its own beyond that. admitted, refused: since the start. overloaded: whether its queue
    stands. rate: seconds of CPU per second it is reckoned to be served with.
    """

    priority: Priority
    running: int
    queued: int
    limit: float
    guaranteed: int
    admitted: int
    refused: int
    overloaded: bool
    rate: float


def _seats(given: Seats | int) -> Seats:
    return given if isinstance(given, Seats) else Seats(given, given)


@attrs.frozen(kw_only=True)
class AdmissionPolicy:
    """How much runs and waits at once, in one process.

    running: the range within which the limit of runs finds itself; a number fixes it. queued: runs that wait, of all
    classes; half of the places are for batch at most, and three quarters for batch and default. degraded: runs of
    `degrade=` flows at once, beside these. tenant_part: of the seats that one tenant may have while others wait for
    one; more than half of them, as tenants with short runs need more seats for their part of the CPU than others.
    interactive, default, batch: what each class is promised, as `default=attrs.evolve(DEFAULT, patience=1.0)`.
    """

    running: Seats = attrs.field(factory=Seats, converter=_seats)
    queued: int = attrs.field(default=2000, validator=attrs.validators.ge(0))
    degraded: int = attrs.field(default=16, validator=attrs.validators.ge(0))
    tenant_part: float = attrs.field(default=0.8, validator=_part)
    interactive: ClassPolicy = INTERACTIVE
    default: ClassPolicy = DEFAULT
    batch: ClassPolicy = BATCH

    @property
    def classes(self) -> tuple[ClassPolicy, ClassPolicy, ClassPolicy]:
        """The three, highest first."""
        return self.interactive, self.default, self.batch
