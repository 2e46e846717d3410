"""Draining: refuse new runs, finish those under way, then cancel and compensate.

Law: it always comes to an end: runs that are cancelled have their own undo deadline, which nothing extends.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from zerver.runtime.admission import AdmissionActor
from zerver.runtime.live import Run


async def drain(admission: AdmissionActor, runs: Mapping[str, Run], deadline: float) -> None:
    """Come to rest. deadline: seconds until runs that are still under way are cancelled."""
    admission.drain()
    # Who was given a ticket a moment ago has no run yet. After one pass of the loop it has, and can be cancelled.
    await trio.lowlevel.checkpoint()
    with trio.move_on_after(deadline):
        await admission.wait_idle()
    for run in list(runs.values()):
        run.cancel("the runtime is draining")
    await admission.wait_idle()
