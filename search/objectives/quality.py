"""How well the net predicts, with inherited weights in their formats, on the rows of the search split."""

import torch

from search.evaluation import Evaluation
from search.objectives import NetObjective
from supernet.errors import UserError
from supernet.losses import first_quarter, late_loss, worst_slice


class Loss(NetObjective):
    """Mean next-token cross-entropy in nats."""

    name = "loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the loss."""
        return evaluation.quality[0]


class Error(NetObjective):
    """Share of next tokens that are not the likeliest one by the net."""

    name = "error"

    def score(self, evaluation: Evaluation) -> float:
        """Return 1 - accuracy."""
        return 1 - evaluation.quality[1]


class QuantizationLoss(NetObjective):
    """What the formats cost: the loss, less that of the same structure with every weight in F16, in nats.

    Below 0 where rounding happens to help. The loss in F16 is computed once for each structure.
    """

    name = "quantization_loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the difference."""
        return evaluation.quality[0] - evaluation.full_precision_loss


class TunedLoss(NetObjective):
    """What the loss is expected to be after fine-tuning, in nats: that of the largest net and what remains of the rise.

    Fine-tuning wins back a larger part of what a smaller structure costs than of what coarser formats do, so inherited
    losses by themselves favor large nets in few bits.

    Args:
        structure: share of a structure's rise (its loss in F16 less the largest net's) that fine-tuning leaves.
        formats: share of `quantization_loss` that it leaves.

    Raises:
        UserError: a share is negative.
    """

    name = "tuned_loss"

    def __init__(self, structure: float, formats: float) -> None:
        if structure < 0 or formats < 0:
            raise UserError(f"tuned_loss: shares must be 0 or more, got {structure} and {formats} (conf/objective/)")
        self.structure, self.formats = structure, formats

    def score(self, evaluation: Evaluation) -> float:
        """Return the expectation."""
        space = evaluation.evaluator.trained.space
        largest = evaluation.evaluator.full_precision_loss(space.decode(space.largest))
        whole = evaluation.full_precision_loss
        return largest + self.structure * (whole - largest) + self.formats * (evaluation.quality[0] - whole)


class LongContextGap(NetObjective):
    """What a net gains less from context than the largest subnet does, in nats per token.

    The gain is the mean loss on the first quarter of the positions of a row less that on the other three;
    the score is the largest subnet's gain less the net's. A net that makes nothing of distant tokens scores
    the largest's whole gain. The gain by itself would order nets alike, but be a negative number.
    """

    name = "long_context_gap"

    def score(self, evaluation: Evaluation) -> float:
        """Return the difference of the gains; 0 for the largest subnet itself."""
        return _gain(evaluation.evaluator.largest_losses) - _gain(evaluation.losses)


class WorstSliceLoss(NetObjective):
    """Mean loss, in nats per token, of the slice of the corpus on which it is highest.

    Tiny slices do not count, see `supernet.losses.worst_slice`.
    """

    name = "worst_slice_loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the largest mean over a slice."""
        return worst_slice(evaluation.losses, evaluation.evaluator.slices)[1]


def _gain(losses: torch.Tensor) -> float:
    """Return mean loss on the first quarter of the positions less that on the rest, of losses (n, tokens)."""
    return losses[:, : first_quarter(losses.shape[1])].double().mean().item() - late_loss(losses)
