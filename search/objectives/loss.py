"""Next-token loss with inherited weights."""

from search.evaluation import Evaluation
from search.objectives import Objective


class Loss(Objective):
    """Mean next-token cross-entropy in nats on the search split."""

    name = "loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the loss."""
        return evaluation.quality[0]
