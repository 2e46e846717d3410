"""Jobs: runs that are made later, elsewhere, again.

jobs(url=None)                          the capability: `zerver.effects.queue`, in the app's database or an own one
enqueue(runtime, flow, body)            ask for a job from outside of a flow; `order`: for a chain, or several
open_worker(runtime, settings)          works on jobs, until the block is left
open_jobs(url)                          a store of jobs, for who looks after them
Snooze, Discard                         what a job's flow may answer besides a result
Unique, Backoff                         how jobs are declared: `app.job(flow, unique=…, backoff=…)`

The port is `zerver.jobs.port`; `zerver.testing.check_jobs` is its proof kit.
"""

from zerver.core.jobs import Backoff as Backoff
from zerver.core.jobs import Discard as Discard
from zerver.core.jobs import Snooze as Snooze
from zerver.core.jobs import Unique as Unique
from zerver.jobs.capability import JobDesk as JobDesk
from zerver.jobs.capability import enqueue as enqueue
from zerver.jobs.capability import jobs as jobs
from zerver.jobs.capability import jobs_capability as jobs_capability
from zerver.jobs.capability import order as order
from zerver.jobs.places import open_jobs as open_jobs
from zerver.jobs.worker import Worker as Worker
from zerver.jobs.worker import WorkerSettings as WorkerSettings
from zerver.jobs.worker import WorkerStatistics as WorkerStatistics
from zerver.jobs.worker import open_worker as open_worker
