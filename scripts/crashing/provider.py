"""A payment provider that counts: how often it was asked, with which key, and what it has done to the caller in return.

    python -m scripts.crashing.provider SEED DEDUPE

Law: it outlives its callers, and believes nobody: every call is in its log before it is looked at. With dedupe a key is
charged once; without, as often as it comes; one that was refunded is never charged again. Errands are counted, and one
that was withdrawn is never performed again. `GET /log` is the log, and `POST /faults` says how often it declines, is
out of order, cuts its caller off when all is done, or takes its time.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from typing import Any
from urllib.parse import unquote

import h11
import trio

SLOW = 0.25  # seconds at most

#: What is asked for at which path.
VERBS = {"/charges": "charge", "/refunds": "refund", "/errands": "errand", "/withdrawals": "withdrawal"}


class Ledger:
    """What was charged and refunded, and every call. dedupe: whether a key is honoured."""

    def __init__(self, dedupe: bool) -> None:
        self.dedupe = dedupe
        self.calls: list[dict[str, Any]] = []
        self.charges: dict[str, list[int]] = {}
        self.refunds: dict[str, int] = {}
        self.performed: dict[str, int] = {}
        self.withdrawn: list[str] = []

    def perform(self, key: str) -> tuple[int, object]:
        """An errand; the same key again has no effect of its own, but is counted."""
        if key in self.withdrawn:
            return 409, {"detail": "this errand was withdrawn"}
        self.performed[key] = self.performed.get(key, 0) + 1
        return 200, {"key": key}

    def withdraw(self, key: str) -> tuple[int, object]:
        if key not in self.withdrawn:
            self.withdrawn.append(key)
        return 200, {"key": key}

    def charge(self, key: str, amount: int) -> tuple[int, object]:
        if key in self.refunds:
            return 409, {"detail": "this key was refunded, or forbidden before anything was charged"}
        made = self.charges.setdefault(key, [])
        if not made or not self.dedupe:
            made.append(amount)
        return 201, {"key": key, "amount": made[0]}

    def refund(self, key: str) -> tuple[int, object]:
        """All that was charged with the key, once; nothing is charged with it from now on."""
        refunded = self.refunds.setdefault(key, sum(self.charges.get(key, ())))
        return 200, {"key": key, "refunded": refunded}

    def find(self, key: str) -> tuple[int, object]:
        made = self.charges.get(key)
        return (200, {"key": key, "amount": made[0]}) if made else (404, {})


class Provider:
    """Answers requests. Faults are drawn for each charge and refund."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.faults: dict[str, float] = {}
        self.rng = random.Random(seed)

    async def answer(self, method: str, path: str, key: str, body: bytes) -> tuple[int, object] | None:
        """Status and value; None: the caller is to hear nothing, though all is done."""
        ledger = self.ledger
        if (method, path) == ("GET", "/log"):
            told = ("calls", "charges", "refunds", "performed", "withdrawn")
            return 200, {name: getattr(ledger, name) for name in told}
        if (method, path) == ("POST", "/faults"):
            self.faults = json.loads(body)
            return 200, {}
        if path.startswith("/services/"):
            return 202, {"accepted": True}
        if path.startswith("/charges/"):
            return ledger.find(unquote(path.removeprefix("/charges/")))
        if path not in VERBS:
            return 404, {}
        return await self.book(path, key, json.loads(body))

    async def book(self, path: str, key: str, said: dict[str, Any]) -> tuple[int, object] | None:
        told = said.get("user", said.get("for", ""))
        call = {"verb": VERBS[path], "key": key, "of": said.get("key", key), "for": told, "fault": ""}
        self.ledger.calls.append(call)
        fault = call["fault"] = self.draw(call["verb"], call["of"] in self.ledger.charges)
        if fault == "slow":
            await trio.sleep(self.rng.uniform(0.0, SLOW))
        if fault == "down":
            return 503, {}
        if fault == "decline":
            return 409, {"detail": "declined"}
        if call["verb"] == "charge":
            done = self.ledger.charge(key, said["amount"])
        elif call["verb"] == "refund":
            done = self.ledger.refund(said["key"])
        elif call["verb"] == "errand":
            done = self.ledger.perform(key)
        else:
            done = self.ledger.withdraw(said["key"])
        return None if fault == "cut" else done

    def draw(self, verb: str, is_charged: bool) -> str:
        """What is charged is not declined any more: that is a definite no, and callers may believe it."""
        chance = self.rng.random()
        for fault, rate in self.faults.items():
            chance -= rate
            if chance < 0:
                return "" if fault == "decline" and (verb != "charge" or is_charged) else fault
        return ""


async def serve_one(provider: Provider, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while True:
                head, body = await _request(connection, stream)
                key = dict(head.headers).get(b"idempotency-key", b"").decode()
                answer = await provider.answer(head.method.decode(), head.target.decode(), key, body)
                if answer is None:
                    return
                status, value = answer
                data = json.dumps(value).encode()
                headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
                out = connection.send(h11.Response(status_code=status, headers=headers)) or b""
                out += connection.send(h11.Data(data=data)) or b""
                out += connection.send(h11.EndOfMessage()) or b""
                await stream.send_all(out)
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()
        except (_Gone, h11.ProtocolError, trio.BrokenResourceError):
            return


class _Gone(Exception):
    """The caller has hung up."""


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> tuple[h11.Request, bytes]:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return head, body
        else:
            raise _Gone


async def main(seed: int, dedupe: bool) -> None:
    provider = Provider(Ledger(dedupe), seed)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(f"listening on http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(partial(serve_one, provider), listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2] == "on")
