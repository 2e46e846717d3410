"""Zerver: typed steps in; timeline, replay, rollback, deadlines and fairness out.

The words of a flow, and nothing that runs one: importing this loads neither trio nor any edge.
"""

from zerver.core import joins as join
from zerver.core.app import App as App
from zerver.core.app import Capability as Capability
from zerver.core.breaker import BreakerPolicy as BreakerPolicy
from zerver.core.bulkhead import Adaptive as Adaptive
from zerver.core.classes import AdmissionPolicy as AdmissionPolicy
from zerver.core.classes import ClassPolicy as ClassPolicy
from zerver.core.concurrency import Seats as Seats
from zerver.core.decisions import Continue as Continue
from zerver.core.decisions import Done as Done
from zerver.core.decisions import Fail as Fail
from zerver.core.decisions import Insert as Insert
from zerver.core.decisions import Need as Need
from zerver.core.decisions import Pause as Pause
from zerver.core.decisions import Replace as Replace
from zerver.core.effects import INJECTED as INJECTED
from zerver.core.effects import CallInfo as CallInfo
from zerver.core.effects import Cancelled as Cancelled
from zerver.core.effects import Effect as Effect
from zerver.core.effects import Failure as Failure
from zerver.core.effects import IdempotencyKey as IdempotencyKey
from zerver.core.effects import Outcome as Outcome
from zerver.core.effects import Success as Success
from zerver.core.effects import Unknown as Unknown
from zerver.core.effects import effect as effect
from zerver.core.flows import Flow as Flow
from zerver.core.policy import Policy as Policy
from zerver.core.slots import Deadline as Deadline
from zerver.core.slots import Part as Part
from zerver.core.slots import Slot as Slot
from zerver.core.stages import branch as branch
from zerver.core.stages import dag as dag
from zerver.core.stages import parallel as parallel
from zerver.core.stages import pivot as pivot
from zerver.core.steps import step as step
from zerver.core.targets import Target as Target
from zerver.core.tenants import Identity as Identity
from zerver.core.tenants import Tenant as Tenant
from zerver.core.tenants import Tenants as Tenants
from zerver.errors import ZerverError as ZerverError

__all__ = [
    "INJECTED",
    "Adaptive",
    "AdmissionPolicy",
    "App",
    "BreakerPolicy",
    "CallInfo",
    "Cancelled",
    "Capability",
    "ClassPolicy",
    "Continue",
    "Deadline",
    "Done",
    "Effect",
    "Fail",
    "Failure",
    "Flow",
    "IdempotencyKey",
    "Identity",
    "Insert",
    "Need",
    "Outcome",
    "Part",
    "Pause",
    "Policy",
    "Replace",
    "Seats",
    "Slot",
    "Success",
    "Target",
    "Tenant",
    "Tenants",
    "Unknown",
    "ZerverError",
    "branch",
    "dag",
    "effect",
    "join",
    "parallel",
    "pivot",
    "step",
]
