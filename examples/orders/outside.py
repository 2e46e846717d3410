"""The bank and the post, as effects. Here both are tables beside the shop's own, so that one sees what they were told.

Law: each takes the key of its effect, and does one thing for one key. That is all that a run needs from the world
outside to be carried on by another process: who asks again, because a crash took the answer, asks with the same key.
"""

from zerver import INJECTED, IdempotencyKey, effect
from zerver.sql import Driver, Statement

SCHEMA = """
create table if not exists charges (key text primary key, cents integer not null, refunded integer not null default 0);
create table if not exists mails (key text primary key, recipient text not null, text text not null);
"""

_CHARGE = "insert into charges (key, cents) values (?, ?) on conflict do nothing"
_REFUND = "insert into charges (key, cents, refunded) values (?, 0, 1) on conflict (key) do update set refunded = 1"
_SEND = "insert into mails (key, recipient, text) values (?, ?, ?) on conflict do nothing"


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED, bank: Driver = INJECTED) -> str:
    """Charge so much; gives the name of the charge, which is its key."""
    await bank.execute(Statement(_CHARGE, (key, cents)))
    return key


@effect(kind="bank.refund", access="write")
async def refund(charged: str, *, key: IdempotencyKey = INJECTED, bank: Driver = INJECTED) -> None:
    """Give the money of a charge back. One that was never made cannot be made then: a call that comes late is void."""
    await bank.execute(Statement(_REFUND, (charged,)))


@effect(kind="post.send", access="write")
async def send(to: str, text: str, *, key: IdempotencyKey = INJECTED, post: Driver = INJECTED) -> None:
    """Send a mail."""
    await post.execute(Statement(_SEND, (key, to, text)))
