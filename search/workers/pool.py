"""What workers are, and the one loop behind those in other processes.

A worker has one task at a time and a channel of its own. So it is known what a dead worker was doing,
one that dies between two tasks costs nothing, and no death can damage what others send. That is why
this is not a library's pool: pebble 5.2, tried, shares a pipe and its locks between all workers. A kill
while a result is sent blocks everyone, and a kill of an idle worker ends the pool.
"""

import os
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from search.workers.host import Raised
from supernet.errors import UserError

Task = Any  # plain data, such as (genome, level)
Scorer = Callable[[Task], dict[str, Any]]
MakeScorer = Callable[[Any], Scorer]

MAX_DEATHS = 3
POLL_S = 1.0  # how often a death is looked for that the channel does not tell


@dataclass(frozen=True)
class Failed:
    """A task that took `MAX_DEATHS` workers with it."""

    reason: str


Result = dict[str, Any] | Failed


class Workers(ABC):
    """What scores tasks; a context manager that leaves no process behind."""

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""

    @abstractmethod
    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the results in the order of the tasks, each as soon as it and those before it are there.

        One `map` at a time. What is left when the caller stops early is dropped.

        Raises:
            Exception: what scoring or making the scorer raised; it is a mistake, so it is not tried again.
            UserError: that, or workers cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class WorkerDiedError(Exception):
    """A worker is gone; the message says how."""


class Worker(ABC):
    """One process as the pool sees it.

    Attributes:
        ready: whether its scorer is made.
        task: index of the task it works on.
        since: when it was started or handed that task, on the monotonic clock.
        pid: of its process, once it is ready.
    """

    def __init__(self) -> None:
        self.ready, self.since = False, time.monotonic()
        self.task: int | None = None
        self.pid: int | None = None

    @property
    def occupied(self) -> bool:
        """Whether it owes an answer."""
        return not self.ready or self.task is not None

    def is_dead(self) -> bool:
        """Return whether it is known to have ended."""
        return False

    @abstractmethod
    def send(self, payload: bytes) -> None:
        """Hand over a pickled task; a death meanwhile shows when the answer is received."""

    @abstractmethod
    def receive(self) -> bytes:
        """Return the answer that is there, pickled.

        Raises:
            WorkerDiedError: there will be none.
        """

    @abstractmethod
    def kill(self) -> None:
        """End it at once, whatever it does."""


class _Job:
    """The tasks of one `map`: which wait, which have a result, how many workers each has cost."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.waiting = deque(range(len(tasks)))
        self.results: dict[int, Result | Raised] = {}
        self.deaths: dict[int, list[str]] = defaultdict(list)

    def died(self, task: int, reason: str) -> None:
        """Let a task whose worker died be tried again, or call it failed."""
        self.deaths[task].append(reason)
        if len(self.deaths[task]) < MAX_DEATHS:
            self.waiting.appendleft(task)
        else:
            reasons = ", ".join(dict.fromkeys(self.deaths[task]))
            self.results[task] = Failed(f"{MAX_DEATHS} workers died on it: {reasons}")


class Pool(Workers):
    """Workers in other processes, replaced when they die or hang.

    Args:
        make_scorer: importable by its name.
        spec: plain data.
        n: number of workers.
        n_threads: each may use.
        timeout_s: for one task.
    """

    start_timeout_s: ClassVar[float] = 600.0  # imports, and whatever make_scorer does
    key: ClassVar[str]  # in conf/search.yaml, of the number of workers

    def __init__(self, make_scorer: MakeScorer, spec: Any, n: int, n_threads: int, timeout_s: float) -> None:
        if make_scorer.__module__ == "__main__":
            raise ValueError("a scorer's maker must be in a module that workers can import, not in a script")
        self._start_message = pickle.dumps((os.getcwd(), make_scorer, spec))
        self._n, self._n_threads, self._timeout_s = n, n_threads, timeout_s
        self._workers: list[Worker] = []
        self._start_deaths = 0  # since a worker last became ready

    @abstractmethod
    def _start(self) -> Worker:
        """Start a worker that makes its scorer and then answers once."""

    @abstractmethod
    def _wait(self, workers: Sequence[Worker], timeout_s: float) -> Collection[Worker]:
        """Return those with an answer, and the dead, as soon as there is one."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are ready."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the results in order; see `Workers.map`."""
        job = _Job(tasks)
        try:
            self._employ(job)
            for index in range(len(tasks)):
                while index not in job.results:
                    self._listen(job)
                    self._employ(job)
                result = job.results.pop(index)
                if isinstance(result, Raised):  # in its turn, as if there were no other workers
                    raise result.error
                yield result
        finally:
            for worker in [w for w in self._workers if w.task is not None]:
                self._remove(worker)

    def close(self) -> None:
        """Kill all workers."""
        for worker in list(self._workers):
            self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _employ(self, job: _Job) -> None:
        """Hand out tasks, and start workers as far as tasks wait for them."""
        for worker in [w for w in self._workers if not w.occupied and w.is_dead()]:
            self._remove(worker)
        for worker in self._workers:
            if not worker.occupied and job.waiting:
                worker.task, worker.since = job.waiting.popleft(), time.monotonic()
                worker.send(pickle.dumps(job.tasks[worker.task]))
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(self._n - len(self._workers), len(job.waiting) - starting)):
            self._workers.append(self._start())

    def _listen(self, job: _Job) -> None:
        """Wait for news, and take them in."""
        occupied = [worker for worker in self._workers if worker.occupied]
        # Overdue before the wait and silent after it: an answer that the caller left lying is not missed.
        now = time.monotonic()
        left = {id(worker): worker.since + self._patience_s(worker) - now for worker in occupied}
        news = self._wait(occupied, min(POLL_S, max(0.0, min(left.values()))))
        for worker in news:
            try:
                answer = pickle.loads(worker.receive())
            except WorkerDiedError as death:
                self._bury(worker, str(death), job)
                continue
            if worker.task is not None:
                job.results[worker.task], worker.task = answer, None
            elif isinstance(answer, Raised):
                self._remove(worker)
                raise answer.error
            else:
                worker.ready, worker.pid, self._start_deaths = True, answer, 0
        for worker in occupied:
            if worker not in news and left[id(worker)] <= 0:
                self._overdue(worker, job)

    def _patience_s(self, worker: Worker) -> float:
        return self._timeout_s if worker.ready else self.start_timeout_s

    def _overdue(self, worker: Worker, job: _Job) -> None:
        if worker.ready:
            self._bury(worker, f"no answer in {self._timeout_s:g} s", job)
        elif not any(other.ready for other in self._workers):
            raise UserError(f"{self._named()}: none has started in {self.start_timeout_s:g} s{self._why_none()}")
        else:
            worker.since = time.monotonic()  # the others do the work; it may join them yet

    def _bury(self, worker: Worker, reason: str, job: _Job) -> None:
        """Remove a worker that died or hangs, and give its task to another."""
        self._remove(worker)
        if worker.task is not None:
            job.died(worker.task, reason)
            return
        self._start_deaths += 1
        if self._start_deaths >= MAX_DEATHS:
            raise UserError(
                f"{self._named()}: {MAX_DEATHS} in a row died while they started ({reason}); is there memory for all?"
            )

    def _named(self) -> str:
        return f"{self.key}={self._n} (conf/search.yaml)"

    def _why_none(self) -> str:
        return ""

    def _environment(self) -> dict[str, str]:
        """Return the variables of a worker's environment that differ from ours."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._n_threads))
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        # Bars of several processes would overwrite each other: the pool's owner has one for all.
        return {**threads, "PYTHONPATH": path, "SEARCH_PID": str(os.getpid()), "TQDM_DISABLE": "1"}
