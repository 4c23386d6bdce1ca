"""How well the net predicts, with inherited weights in their formats, on the rows of the search split."""

import torch

from search.evaluation import Evaluation
from search.objectives import NetObjective


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

    Of the slices that hold at least as many tokens as a row, the mean of fewer being chance; of all where
    there is none so large.
    """

    name = "worst_slice_loss"

    def score(self, evaluation: Evaluation) -> float:
        """Return the largest mean over a slice."""
        # On the CPU: a GPU adds up in an order of its own each time.
        losses, slices = evaluation.losses.double().cpu(), evaluation.evaluator.slices.cpu()
        counts = slices.flatten().bincount()
        means = slices.flatten().bincount(losses.flatten()) / counts
        large = counts >= min(losses.shape[1], int(counts.max()))
        return means[large].max().item()


def _gain(losses: torch.Tensor) -> float:
    """Return mean loss on the first quarter of the positions less that on the rest, of losses (n, tokens)."""
    early = max(1, losses.shape[1] // 4)
    return (losses[:, :early].double().mean() - losses[:, early:].double().mean()).item()
