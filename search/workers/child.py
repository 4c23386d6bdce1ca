"""The process of a local worker: `python -m search.workers.child PIPE PARENT`."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from threading import Thread

from search.workers.host import Host


def main() -> None:
    """Answer until the parent is gone."""
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    host = Host()
    try:
        connection.send_bytes(host.start(connection.recv_bytes()))
        while True:
            connection.send_bytes(host.score(connection.recv_bytes()))
    except (EOFError, OSError):
        return


def _end_with(parent: int) -> None:
    """Kill this process and its children once the parent is gone: a task may run for long, or hang."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
