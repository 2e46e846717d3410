"""The proof kit of the port of jobs: each promise of `zerver/jobs/port.py`, as a law that can be broken.

Law: a law knows the port and nothing else, and it fails with an AssertionError that names it. Raised, not asserted, so
that it holds under `python -O` too. Precedent: `zerver.testing.check_driver`.

A lease that is to lapse is given up, and what is to come later is an hour away; the one law that waits for a time waits
for 50 ms. Threads and sockets do not stop for a mock clock, so use the real one. What a law cannot show is the disk:
that a process which was killed has lost nothing is for tests that kill processes.
"""

from __future__ import annotations

from typing import Final

import trio

from zerver.runtime.groups import bare
from zerver.testing import job_hands, job_orders, job_work
from zerver.testing.job_case import Case, OpenStore

#: The laws, in this order.
LAWS: Final = (*job_orders.law, *job_work.law, *job_hands.law)


async def check_jobs(open_store: OpenStore, *, patience: float = 60.0) -> None:
    """Prove that a store of jobs keeps the port's promises; AssertionError names the first law it breaks.

    open_store: opens the same store each time, several at once too, as other processes do. It need not be empty, and is
    left with what the laws wrote; give one of the test's own. patience: seconds after which a law is taken to hang.
    """
    for name, one in LAWS:
        try:
            with trio.fail_after(patience):
                async with open_store() as store:
                    await one(Case(store, open_store))
        except trio.TooSlowError as error:
            raise AssertionError(f"check_jobs: {name}: it hangs: not over after {patience} s") from error
        except Exception as error:
            broken = bare(error)
            what = broken if isinstance(broken, AssertionError) else repr(broken)
            raise AssertionError(f"check_jobs: {name}: {what}") from broken
