"""What is minimized: one objective a file, `_target_` in conf/objective/ names the class."""

from abc import ABC, abstractmethod
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
    def score(self, evaluation: Evaluation) -> float:
        """Return the candidate's score."""
