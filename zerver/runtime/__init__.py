"""How it runs: actors, nurseries, cancel scopes.

Embed Zerver in any Trio program with `open_runtime`; build services of your own with actors and supervisors.
"""

from zerver.runtime.actor import Actor as Actor
from zerver.runtime.actor import ActorRef as ActorRef
from zerver.runtime.actor import ActorStatistics as ActorStatistics
from zerver.runtime.alarm import Alarm as Alarm
from zerver.runtime.mailbox import Mailbox as Mailbox
from zerver.runtime.mailbox import MailboxStatistics as MailboxStatistics
from zerver.runtime.opening import open_runtime as open_runtime
from zerver.runtime.receipts import Claim as Claim
from zerver.runtime.receipts import MemoryReceipts as MemoryReceipts
from zerver.runtime.receipts import Receipt as Receipt
from zerver.runtime.receipts import Receipts as Receipts
from zerver.runtime.receipts import ReceiptTally as ReceiptTally
from zerver.runtime.receipts import StoredAnswer as StoredAnswer
from zerver.runtime.receipts import receipts_capability as receipts_capability
from zerver.runtime.result import Continuation as Continuation
from zerver.runtime.result import Result as Result
from zerver.runtime.run import Runtime as Runtime
from zerver.runtime.statistics import RuntimeStatistics as RuntimeStatistics
from zerver.runtime.supervisor import Supervisor as Supervisor
from zerver.runtime.supervisor import SupervisorStatistics as SupervisorStatistics
from zerver.runtime.supervisor import open_supervisor as open_supervisor
from zerver.runtime.tenants import load_tenants as load_tenants
from zerver.runtime.tenants import watch_tenants as watch_tenants
