"""A process that has imported all that a server needs, and forks one for each command that it is sent.

    python -m scripts.crashing.warm SOCKET

Law: nothing is open here and nothing runs, no loop and no thread, so that a fork is as good as a new process. A message
is a command, as `python -m` would have it, with two file descriptors, for stdout and stderr; the answer is the fork's
process id.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import traceback

import scripts.crashing.shop
import zerver.cli.main
import zerver.cli.serve  # imported when it is asked for; here, before that
import zerver.cli.work

__all__ = ["scripts", "zerver"]


def main(place: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for those that are killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(place)
        while True:
            message, fds, _, _ = socket.recv_fds(channel, 1 << 16, 2)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                channel.close()
                become(json.loads(message), *fds)
            for fd in fds:
                os.close(fd)
            channel.send(str(pid).encode())


def become(command: list[str], said: int, errors: int) -> None:
    """Do what `python -m` would, and end."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(said, 1)
        os.dup2(errors, 2)
        for fd in (said, errors):
            os.close(fd)
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else ended.code is not None
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
