"""Where candidates are scored: in this process, in processes of this machine, or on a Ray cluster.

```python
with make_workers(2, make_scorer, spec, n_threads=1, timeout_s=600) as workers:
    for result in workers.map(tasks):  # in the order of the tasks, each as soon as it is there
        ...
```
"""

from importlib.util import find_spec
from typing import Any

from search.workers.in_process import InProcess
from search.workers.pool import Failed, MakeScorer, Result, Scorer, Task, Workers
from supernet.errors import UserError

__all__ = ["Failed", "InProcess", "MakeScorer", "Result", "Scorer", "Task", "Workers", "check_workers", "make_workers"]


def check_workers(workers: Any, timeout_s: Any, ray_workers: Any) -> None:
    """Refuse settings that no workers can be made of, without starting any.

    Raises:
        UserError: a value out of range, or Ray is asked for and not installed.
    """
    if workers != "ray" and not _is_count(workers):
        raise UserError(f"workers must be 1 or more, or ray, got {workers!r} (conf/search.yaml)")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise UserError(f"worker_timeout_s must be a number above 0, got {timeout_s!r} (conf/search.yaml)")
    if workers == "ray":
        if not _is_count(ray_workers):
            raise UserError(f"ray.workers must be 1 or more, got {ray_workers!r} (conf/search.yaml)")
        if find_spec("ray") is None:
            raise UserError("workers=ray needs Ray, which is not installed: pip install -e '.[ray]'")


def make_workers(
    workers: int | str,
    make_scorer: MakeScorer,
    spec: Any,
    *,
    n_threads: int,
    timeout_s: float,
    ray_address: str | None = None,
    ray_workers: int = 1,
) -> Workers:
    """Return what `workers` in `conf/search.yaml` stands for; nothing starts before the first task.

    Args:
        workers: 1 is this process, more are that many processes, "ray" are actors on a Ray cluster.
        make_scorer: called once per worker with `spec`; other processes import it by its name.
        spec: plain data.
        n_threads: of torch in each worker; `make_scorer` sets it, the environment follows it.
        timeout_s: a worker that takes longer for one task is replaced; without effect in this process.
        ray_address: of the cluster; "auto" is the one of this machine, None starts one for this search alone.
        ray_workers: number of actors.

    Raises:
        UserError: see `check_workers`.
    """
    check_workers(workers, timeout_s, ray_workers)
    if workers == 1:
        return InProcess(make_scorer, spec)
    if workers == "ray":
        from search.workers.on_ray import RayWorkers

        return RayWorkers(make_scorer, spec, ray_workers, n_threads, timeout_s, ray_address)
    from search.workers.local import LocalProcesses

    return LocalProcesses(make_scorer, spec, int(workers), n_threads, timeout_s)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
