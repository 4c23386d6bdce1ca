"""A runtime in a process of its own: one JSON request on stdin, one JSON reply on stdout.

What goes wrong there (a failed assertion, memory that runs out, a hang) comes back as a reason and is never
a crash of the caller. `ChildRuntime` is the side that asks, `serve` the side that answers.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from search.targets import Runtime
from supernet.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SCORED_TOKENS = 32768  # in one call: the whole of a split would take a large net longer than `timeout_s`
STDERR_TAIL = 400  # characters of what the child printed that go into a reason

Task = Callable[[dict[str, Any]], dict[str, Any]]


class Failure(Exception):
    """What the caller asked for cannot be done; the message is the reply."""


class ChildRuntime(Runtime):
    """A runtime that does every task in a new process, `python -m module`.

    Attributes:
        module: that answers, with `serve`.
        label: of the runtime in messages.
        environment: variables that are set for it.
        remedy: what to do about an illegal instruction, in a few words.
        timeout_s: for any task.
    """

    module: ClassVar[str]
    label: ClassVar[str]
    environment: ClassVar[Mapping[str, str]] = {}
    remedy: ClassVar[str] = ""
    timeout_s: float

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return the settings that go with every task."""

    def ask(self, task: str, path: Path, module: str | None = None, **settings: Any) -> dict[str, Any]:
        """Run one task in a child process; what goes wrong there comes back as {"error": reason}.

        Args:
            task: name of the function that answers.
            path: of the artifact.
            module: that holds it, where that is not the runtime's own.
            **settings: JSON values that the task reads.

        Raises:
            UserError: the runtime is not available, or there is no such artifact.
        """
        missing = self.available()
        if missing:
            raise UserError(missing)
        if not path.exists():
            raise UserError(f"{path} is missing: export it first")
        asked = json.dumps({"task": task, "path": str(path), **self.request(), **settings})
        search_path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if p)
        try:
            child = subprocess.run(
                [sys.executable, "-m", module or self.module],
                input=asked.encode(),
                capture_output=True,
                timeout=self.timeout_s,
                env={**os.environ, "PYTHONPATH": search_path, **self.environment},
            )
        except subprocess.TimeoutExpired:
            return {"error": f"{path} could not be run: more than {self.timeout_s} s (targets.{self.name}.timeout_s)"}
        return self._reply(child, path)

    def _reply(self, child: subprocess.CompletedProcess[bytes], path: Path) -> dict[str, Any]:
        """Return what the child answered, or {"error": reason} with the end of what it printed."""
        if child.returncode < 0:
            reason = f"{self.label} was killed by {signal.Signals(-child.returncode).name}"
            if -child.returncode == signal.SIGILL:
                reason += ", an illegal instruction" + (f"; {self.remedy}" if self.remedy else "")
        elif child.returncode:
            reason = f"{self.label}'s process ended with code {child.returncode}"
        else:
            try:
                reply: dict[str, Any] = json.loads(child.stdout)
            except ValueError:
                reply = {"error": f"{self.label}'s process gave no answer"}
            if "error" not in reply:
                return reply
            reason = reply["error"]
        printed = " ".join(child.stderr.decode("utf-8", errors="replace").split())[-STDERR_TAIL:]
        return {"error": f"{path} could not be run: {reason}" + (f": {printed}" if printed else "")}

    def measured(self, path: Path, **settings: Any) -> dict[str, Any]:
        """Return the reply to the task `measure` with `built` True, or `built` False and a `reason`.

        Raises:
            UserError: the runtime is not available, or there is no such artifact.
        """
        reply = self.ask("measure", path, **settings)
        return {"built": False, "reason": reply["error"]} if "error" in reply else {"built": True, **reply}

    def need(self, task: str, path: Path, **settings: Any) -> dict[str, Any]:
        """Return the reply to a task; the arguments are those of `ask`.

        Raises:
            UserError: the runtime is not available, or could not load or run the artifact.
        """
        reply = self.ask(task, path, **settings)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def token_scores(self, path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return loss (nats) and hit of each next token, each (n, T), of token ids (n, T + 1).

        The task of that name writes both to a .npy file (2, n, T).

        Raises:
            UserError: the runtime is not available, or could not load or run the artifact; or rows of another shape.
        """
        if rows.ndim != 2 or rows.shape[1] < 2 or not len(rows):
            raise UserError(f"expected rows of token ids (n, T + 1), got shape {rows.shape}")
        at_once = max(1, SCORED_TOKENS // rows.shape[1])
        parts = [self._scores(path, rows[i : i + at_once]) for i in range(0, len(rows), at_once)]
        losses, hits = np.concatenate(parts, axis=1)
        return losses, hits > 0

    def _scores(self, path: Path, rows: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder) / "rows.npy", Path(folder) / "scores.npy"
            np.save(asked, rows)
            self.need("token_scores", path, rows=str(asked), out=str(answered))
            return np.load(answered)


def check_positive(name: str, conf: str, **settings: Any) -> None:
    """Raise UserError for a setting of target `name` (configuration file `conf`) that is no number above 0."""
    for key, value in settings.items():
        if not isinstance(value, int | float) or value <= 0:
            raise UserError(f"targets.{name}.{key} must be a number above 0, got {value!r} ({conf})")


def check_quantizer(name: str, conf: str, kinds: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that the quantizer of target `name` (configuration file `conf`) is to make.

    Raises:
        UserError: not a list, or one of them is not `known`.
    """
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or set(kinds) - set(known):
        asked = kinds if isinstance(kinds, str | None) else list(kinds)
        raise UserError(f"targets.{name}.quantizer must list some of {', '.join(known)}, got {asked!r} ({conf})")
    return tuple(kinds)


def serve(*tasks: Task) -> None:
    """Answer the one request on stdin by the task that it names, and write the reply to stdout."""
    reply_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up in the reply
    os.write(reply_to, json.dumps(answer(json.load(sys.stdin), *tasks)).encode())


def answer(request: dict[str, Any], *tasks: Task) -> dict[str, Any]:
    """Return what the task says that the request names, or {"error": reason}."""
    try:
        return {task.__name__: task for task in tasks}[request["task"]](request)
    except Failure as failure:
        return {"error": str(failure)}
    except Exception as error:  # the caller must get a reason, whatever went wrong
        return {"error": repr(error)}


def start_of_peak() -> int:
    """Forget this process's peak memory so far, where Linux allows it, and return the bytes that are resident."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes("VmRSS")


def resident_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of this process.

    Elsewhere than on Linux both are the peak so far, from getrusage. Linux does not use that one: there it
    is inherited from the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def processor() -> str:
    """Return the name of this machine's processor."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
        if named:
            return named[0]
    return platform.processor() or platform.machine()
