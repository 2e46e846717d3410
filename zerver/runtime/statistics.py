"""Statistics: what a runtime counts, as one value.

Law: a snapshot: it costs nothing until somebody asks, and no part of it changes afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from zerver.runtime.admission import AdmissionStatistics
from zerver.runtime.targets import TargetStatistics
from zerver.runtime.turns import TurnStatistics


@attrs.frozen
class RuntimeStatistics:
    """running: runs under way. ended: runs that have ended, refused ones included. unresolved: runs that ended
    unresolved; set_aside: that no code here could carry on. recovered: runs of workers that had died, or that were
    tried again.

    stuck: ids of the journal's runs that are set aside now, and why; open_unresolved: how many of its runs are
    unresolved now; both as of the last look, and of a thousand at most. open_parked: how many of its runs are put down,
    as of the last count, which may be half a minute old. observer_errors: what observers and on_unresolved have raised.
    """

    running: int
    ended: int
    unresolved: int
    observer_errors: int
    admission: AdmissionStatistics
    targets: tuple[TargetStatistics, ...]
    turns: TurnStatistics
    recovered: int = 0
    stuck: Mapping[str, str] = MappingProxyType({})
    set_aside: int = 0
    open_unresolved: int = 0
    open_parked: int = 0
