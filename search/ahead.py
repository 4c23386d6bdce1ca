"""Fine-tuning of several nets side by side, in the processes that `workers` names, before each is judged and measured.

Small nets make poor use of several threads: two of 260,000 weights, a thread each, take 0.6 of the time that they take
one after the other on two.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from search.finetune import WEIGHTS
from search.scoring import Scorer
from search.shipping import Shipyard
from search.workers import Failed, Task, Workers
from supernet.cli import progress
from supernet.errors import UserError
from supernet.genes import Genome


class Net(NamedTuple):
    """What is to be fine-tuned: its key in the shipyard, what to call it, and what it is."""

    key: str
    name: str
    genome: Genome


def tune_ahead(yard: Shipyard, workers: Workers, nets: Sequence[Net]) -> None:
    """Fine-tune nets in workers; the shipyard then finds their weights. What is tuned already is left alone.

    Raises:
        UserError: a net cannot be tuned, or takes every worker with it.
    """
    left = [net for net in dict.fromkeys(nets) if not (yard.work(net.key) / WEIGHTS).exists()]
    if not left:
        return
    with workers, progress(total=len(left), desc="fine-tune", unit="net") as bar:
        for net, result in zip(left, workers.map([tuple(net) for net in left]), strict=True):
            if isinstance(result, Failed):
                raise UserError(f"{net.name} cannot be fine-tuned: {result.reason}; workers=1 does it in this process")
            bar.update()


def make_tuner(spec: Mapping[str, Any]) -> Callable[[Task], dict[str, Any]]:
    """Return what fine-tunes nets in a worker process.

    Args:
        spec: `config` (plain values) and `folder` of the search, and the `command` that it was started by.
    """
    config, folder = OmegaConf.create(dict(spec["config"])), Path(spec["folder"])
    torch.set_num_threads(config.n_threads)
    yard = Shipyard(config, folder, Scorer(config, folder), spec["command"])

    def tune(task: Task) -> dict[str, Any]:
        key, name, genome = task
        yard.tuner.tuned(yard.work(key), name, genome)
        return {}

    return tune
