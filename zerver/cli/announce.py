"""Announcing: what a serving process says of itself, once it serves.

Law: people read it on stdout, other commands in `.zerver/live.json`. That the file cannot be written stops nobody from
serving.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from zerver.ui import Access, Live, beacon


@contextmanager
def announced(addresses: Sequence[str], access: Access | None, *, known: bool = False) -> Iterator[None]:
    """Say where it listens, and what opens the page, if there is one; the file stands as long as the block takes.

    known: whether the operator has said the token, and must not read it again.
    """
    with ExitStack() as stack:
        lines = [f"listening on {address}" for address in addresses]
        if access is not None and addresses:
            live = Live(addresses[0], os.getpid(), access.token, access.path, time.time() * 1e3)
            try:
                stack.enter_context(beacon(live))
            except OSError as error:
                print(f"zerver top will not find this server: {error}", file=sys.stderr)
            url = access.url(addresses[0])
            lines.append(f"live page {url.partition('?')[0]} for who has the token" if known else f"live page {url}")
        print(*lines, sep="\n", flush=True)
        yield
