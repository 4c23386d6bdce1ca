"""How well the net predicts, with inherited weights in their formats, on the rows of the search split."""

import torch

from search.evaluation import Evaluation
from search.objectives import NetObjective
from supernet.losses import first_quarter, late_loss, slice_losses


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


class Divergence(NetObjective):
    """KL(largest || net) of the predictions in nats per token: what a net loses of the largest subnet.

    Nets compare by it with far less chance than by the loss on the same tokens, since what is hard in these is hard
    for the largest, too. It keeps the largest's log-probabilities: 2 bytes x tokens x vocabulary.
    """

    name = "divergence"

    def score(self, evaluation: Evaluation) -> float:
        """Return the mean over all tokens; near 0 for the largest subnet itself."""
        return evaluation.divergence


class QuantizationLoss(NetObjective):
    """What the formats cost: the loss, less that of the same structure with every weight in F16, in nats.

    Below 0 where rounding happens to help. The loss in F16 is computed once for each structure.
    """

    name = "quantization_loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the difference."""
        return evaluation.quality[0] - evaluation.full_precision_loss


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

    Tiny slices do not count, see `supernet.losses.slice_losses`.
    """

    name = "worst_slice_loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the largest mean over a slice."""
        return max(slice_losses(evaluation.losses, evaluation.evaluator.slices).values())


def _gain(losses: torch.Tensor) -> float:
    """Return mean loss on the first quarter of the positions less that on the rest, of losses (n, tokens)."""
    return losses[:, : first_quarter(losses.shape[1])].double().mean().item() - late_loss(losses)
