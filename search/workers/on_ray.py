"""Workers on a Ray cluster, or on a Ray of our own on this machine: one actor each.

The repository and the run must lie under the same paths on all machines of the cluster, and the Python
environments must agree; nothing is uploaded. https://docs.ray.io/en/latest/ray-core/actors.html
"""

import logging
import os
import re
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from search.workers.host import Host
from search.workers.pool import MakeScorer, Pool, Worker, WorkerDiedError
from supernet.errors import UserError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no report to Ray's makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers see the GPUs that local ones see
}
OBJECT_STORE_BYTES = 100_000_000  # tasks and scores are small and do not pass through it


class Actor(Worker):
    """A Ray actor that holds a scorer."""

    def __init__(self, start_message: bytes, n_threads: int, environment: dict[str, str]) -> None:
        import ray

        super().__init__()
        self._actor = (
            ray.remote(Host).options(num_cpus=n_threads, max_restarts=0, runtime_env={"env_vars": environment}).remote()
        )
        self.answer = self._actor.start.remote(start_message)

    def send(self, payload: bytes) -> None:
        """Hand over a pickled task."""
        self.answer = self._actor.score.remote(payload)

    def receive(self) -> bytes:
        """Return a pickled answer."""
        import ray

        try:
            return bytes(ray.get(self.answer))
        except ray.exceptions.RayTaskError:  # ours to mend, not a death
            raise
        except ray.exceptions.RayError as error:
            raise WorkerDiedError(_reason(error)) from error

    def kill(self) -> None:
        """End the actor's process."""
        import ray

        ray.kill(self._actor)


class RayWorkers(Pool):
    """Actors on a Ray cluster.

    When the cluster has no room for all of them, those that have started do the work and the others join
    when they can.

    Args:
        make_scorer: importable by its name on every machine of the cluster.
        spec: plain data.
        n: number of actors.
        n_threads: each may use; as many CPUs are asked for.
        timeout_s: for one task.
        address: of the cluster; "auto" is the one of this machine, None starts one that ends with us.
    """

    key: ClassVar[str] = "ray.workers"

    def __init__(
        self, make_scorer: MakeScorer, spec: Any, n: int, n_threads: int, timeout_s: float, address: str | None
    ) -> None:
        super().__init__(make_scorer, spec, n, n_threads, timeout_s)
        self._address, self._connected = address, False

    def close(self) -> None:
        """Kill all actors, and leave the cluster if we joined it."""
        super().close()
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def _start(self) -> Worker:
        self._connect()
        return Actor(self._start_message, self._n_threads, {**self._environment(), **QUIET})

    def _wait(self, workers: Sequence[Worker], timeout_s: float) -> Collection[Worker]:
        import ray

        actors = {worker.answer: worker for worker in workers if isinstance(worker, Actor)}
        ray.wait(list(actors), timeout=timeout_s)
        ready, _ = ray.wait(list(actors), num_returns=len(actors), timeout=0)  # not the first alone
        return {actors[answer] for answer in ready}

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():  # by us, or by whoever uses us
            return
        os.environ.update(QUIET)
        own: dict[str, Any] = dict(
            num_cpus=self._n * self._n_threads, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES
        )
        try:
            ray.init(
                address=self._address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if self._address else own),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            none_here = self._address == "auto" and isinstance(error, ConnectionError)
            reason = "no Ray cluster runs on this machine" if none_here else str(error).strip().splitlines()[0]
            raise UserError(
                f"ray.address={self._address}: {reason} (conf/search.yaml; null starts Ray for this search alone)"
            ) from error
        self._connected = True

    def _why_none(self) -> str:
        import ray

        cpus = f"{ray.cluster_resources().get('CPU', 0):g}"
        free = f"{ray.available_resources().get('CPU', 0):g}"
        return f"; each needs {self._n_threads} CPUs (n_threads), the cluster has {cpus}, of which {free} are free"


def _reason(error: Exception) -> str:
    """Return why an actor is gone, without the ids that would make it another reason each time."""
    text = str(error).strip()
    found = re.search(r"because (.+?)(\.\s|\.?$)", text, re.MULTILINE)
    return found[1] if found else text.splitlines()[0]
