"""No other process: one candidate after the other, here."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from search.workers.pool import MakeScorer, Result, Scorer, Task, Workers


class InProcess(Workers):
    """Scores in this process; nothing is pickled and nothing limits how long a task takes."""

    def __init__(self, make_scorer: MakeScorer, spec: Any) -> None:
        self._make_scorer, self._spec = make_scorer, spec
        self._scorer: Scorer | None = None

    @property
    def pids(self) -> list[int]:
        """This process."""
        return [os.getpid()]

    def map(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield each task's scores, computed when they are asked for."""
        for task in tasks:
            if self._scorer is None:
                self._scorer = self._make_scorer(self._spec)
            yield self._scorer(task)

    def close(self) -> None:
        """Forget the scorer."""
        self._scorer = None
