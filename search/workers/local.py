"""Workers in processes of this machine: `python -m search.workers.child`, a pipe to each."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import ClassVar

from search.workers.pool import Pool, Worker, WorkerDiedError


class ChildProcess(Worker):
    """A fresh interpreter rather than a fork: torch's threads do not survive a fork, nor is our script run again.

    It leads a process group of its own. Ctrl-C does not reach it, and whatever it started dies with it.

    Attributes:
        connection: our end of its pipe.
    """

    def __init__(self, start_message: bytes, environment: Mapping[str, str]) -> None:
        super().__init__()
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "search.workers.child", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.send(start_message)

    def send(self, payload: bytes) -> None:
        """Hand over a pickled message."""
        with suppress(OSError):
            self.connection.send_bytes(payload)

    def receive(self) -> bytes:
        """Return a pickled answer."""
        with suppress(EOFError, OSError):
            if self.connection.poll():
                return self.connection.recv_bytes()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # the pipe may close a little before the end, which has its own exit code
        self.kill()
        code = self._process.returncode
        raise WorkerDiedError(f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")

    def is_dead(self) -> bool:
        """Return whether it ended; its end of the pipe may still be open in a process that it forked."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it and all it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()


class LocalProcesses(Pool):
    """Workers in processes of this machine."""

    key: ClassVar[str] = "workers"

    def _start(self) -> Worker:
        return ChildProcess(self._start_message, self._environment())

    def _wait(self, workers: Sequence[Worker], timeout_s: float) -> Collection[Worker]:
        children = {worker.connection: worker for worker in workers if isinstance(worker, ChildProcess)}
        ready = wait(list(children), timeout_s)
        return {worker for connection, worker in children.items() if connection in ready or worker.is_dead()}
