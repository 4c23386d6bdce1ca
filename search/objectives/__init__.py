"""What is minimized; `_target_` in conf/objective/ names the class, the file's name is that of the score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from search.evaluation import Evaluation


class Objective(ABC):
    """A function of a candidate, minimized.

    Attributes:
        name: of the score; ends with its unit where it has one.
        cheap: known from the genome alone, so a budget on it is checked before anything is spent.
    """

    name: ClassVar[str]
    cheap: ClassVar[bool] = False

    @abstractmethod
    def scores(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the candidate's scores by name."""


class NetObjective(Objective):
    """A property of the net: one score, wherever it runs."""

    def scores(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the score under the objective's name."""
        return {self.name: self.score(evaluation)}

    @abstractmethod
    def score(self, evaluation: Evaluation) -> float:
        """Return the candidate's score."""


class TargetObjective(Objective):
    """A property of the net on a target: one score for each target of the search."""

    def scores(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the scores on all targets, under the names that `score_name` gives them."""
        targets = evaluation.evaluator.targets
        return {score_name(self.name, target, targets): self.score_on(evaluation, target) for target in targets}

    @abstractmethod
    def score_on(self, evaluation: Evaluation, target: str) -> float:
        """Return the candidate's score on a target."""


def score_name(name: str, target: str, targets: Sequence[str]) -> str:
    """Return the name of a target's score: `decode_ms`, or `decode_ms@TARGET` where there are several targets."""
    return name if len(targets) == 1 else f"{name}@{target}"
