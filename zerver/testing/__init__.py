"""The proof kits: how to test what is made with Zerver.

    play, script                            a step, without an event loop, its effects scripted
    scripted, slow, fails, hangs, …         a whole flow in the real runtime, the world scripted, faults included
    client                                  an app over real HTTP, in memory
    check_golden, normal                    a timeline, compared with what it once was
    cancel_sweep, sweep_calls               a call, cancelled at every moment
    seeded, explore, mock_clock             chance, order and time, in the test's hands
    no_leaks                                what a block opened, it has closed
    check_driver, check_store               the promises of an SQL driver, and of a key-value store
    check_journal                           the promises of a journal
    check_jobs                              the promises of a store of jobs
    check_receipts                          the promises of a store of idempotency keys

Fixtures for pytest (`autojump_clock`, `nursery`) come from pytest-trio.
"""

from zerver.testing.answers import Script as Script
from zerver.testing.answers import Unscripted as Unscripted
from zerver.testing.client import Client as Client
from zerver.testing.client import OpenRequest as OpenRequest
from zerver.testing.client import Reply as Reply
from zerver.testing.client import client as client
from zerver.testing.drivers import check_driver as check_driver
from zerver.testing.golden import GoldenMismatch as GoldenMismatch
from zerver.testing.golden import check_golden as check_golden
from zerver.testing.golden import normal as normal
from zerver.testing.jobs import check_jobs as check_jobs
from zerver.testing.journals import check_journal as check_journal
from zerver.testing.leaks import LeakCheck as LeakCheck
from zerver.testing.leaks import LeakFound as LeakFound
from zerver.testing.leaks import no_leaks as no_leaks
from zerver.testing.play import Played as Played
from zerver.testing.play import play as play
from zerver.testing.receipts import check_receipts as check_receipts
from zerver.testing.scheduler import Exploration as Exploration
from zerver.testing.scheduler import SeedFailure as SeedFailure
from zerver.testing.scheduler import explore as explore
from zerver.testing.scheduler import mock_clock as mock_clock
from zerver.testing.scheduler import seeded as seeded
from zerver.testing.script import Fault as Fault
from zerver.testing.script import Handler as Handler
from zerver.testing.script import Scripted as Scripted
from zerver.testing.script import ScriptedCall as ScriptedCall
from zerver.testing.script import fails as fails
from zerver.testing.script import flaky as flaky
from zerver.testing.script import hangs as hangs
from zerver.testing.script import loses_reply as loses_reply
from zerver.testing.script import script as script
from zerver.testing.script import scripted as scripted
from zerver.testing.script import slow as slow
from zerver.testing.stores import check_store as check_store
from zerver.testing.sweep import SweepFailure as SweepFailure
from zerver.testing.sweep import SweepFinding as SweepFinding
from zerver.testing.sweep import SweepReport as SweepReport
from zerver.testing.sweep import cancel_sweep as cancel_sweep
from zerver.testing.sweep import sweep_calls as sweep_calls
