"""Which members of the front are worth fine-tuning, and how they and the baselines are judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.candidate import Candidate
from search.targets import Runtime
from supernet.losses import late_loss, mean_scores, score_tokens, slice_losses
from supernet.subnet import Decoder


def spread(front: Sequence[Candidate], objectives: Sequence[str], n: int) -> list[Candidate]:
    """Return `n` members of the front: the best in the first objective, then each time the farthest.

    Distance is the smallest one to those already chosen, every objective scaled to its range on the
    front; so members of a knot are not taken twice.
    """
    if len(front) <= n:
        return list(front)
    points = np.array([[c.scores[name] for name in objectives] for c in front])
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    chosen = [int(points[:, 0].argmin())]
    while len(chosen) < n:
        distance = np.min([np.abs(points - points[i]).sum(1) for i in chosen], axis=0)
        distance[chosen] = -1.0  # nobody twice, even where all distances are 0
        chosen.append(int(distance.argmax()))
    return [front[i] for i in sorted(chosen, key=lambda i: points[i, 0])]


def near_budget(front: Sequence[Candidate], budget: Mapping[str, float], n: int, share: float) -> list[Candidate]:
    """Return the members of the front that make use of the budget: at least `n`, where there are so many.

    Whoever names a budget means to spend it: finalists are sought among members that reach `share` of
    a bound, and where these are fewer than `n`, among the `n` that come nearest.
    """

    def use(candidate: Candidate) -> float:
        # A net that uses one budget up cannot spend more of the others.
        return max((candidate.scores[name] / bound if bound else 1.0 for name, bound in budget.items()), default=1.0)

    most_first = sorted(front, key=lambda c: (-use(c), c.id))
    used = {c.id for i, c in enumerate(most_first) if i < n or use(c) >= share}
    return [c for c in front if c.id in used]


def best_within(
    candidates: Sequence[Candidate], sizes_mb: Sequence[float], value: Callable[[Candidate], float]
) -> list[Candidate]:
    """Return for each size the candidate of the lowest value that is no larger; who is best for two, once.

    Where equals are to choose from it is the smallest. A size that nothing is within gets none.
    """
    chosen: dict[int, Candidate] = {}
    for size in sizes_mb:
        within = [c for c in candidates if c.scores["size_mb"] <= size]
        if within:
            best = min(within, key=lambda c: (value(c), c.scores["size_mb"], c.id))
            chosen[best.id] = best
    return list(chosen.values())


@dataclass(frozen=True)
class Judge:
    """The rows that finalists are judged on.

    Attributes:
        valid: rows (n, tokens + 1) of the search split.
        test: rows of the test split, read here and nowhere before.
        batch_size: rows at a time.
        slices: id of the slice of the corpus that each target token of `test` belongs to (n, tokens).
        slice_names: by id.
    """

    valid: Tensor
    test: Tensor
    batch_size: int
    slices: Tensor
    slice_names: Sequence[str]

    def scores(self, decoder: Decoder) -> dict[str, Any]:
        """Return how good the weights as shipped are.

        Loss and accuracy on both splits; and on test `late_loss`, beyond the first quarter of the positions, and
        `slice_losses`, that of each slice of the corpus by name, but for those of few tokens.
        """
        decoder = decoder.to(self.valid.device)
        with torch.inference_mode():
            return self._scores(lambda rows: score_tokens(decoder, rows, self.batch_size))

    def runtime_scores(self, runtime: Runtime, path: Path) -> dict[str, Any]:
        """Return the same of a runtime's artifact, as the runtime itself computes it.

        Raises:
            UserError: the runtime could not load or run it.
        """

        def score(rows: Tensor) -> tuple[Tensor, Tensor]:
            losses, hits = runtime.token_scores(path, rows.cpu().numpy())
            return torch.from_numpy(losses), torch.from_numpy(hits)

        return self._scores(score)

    def _scores(self, score: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        valid_loss, valid_accuracy = mean_scores(*score(self.valid))
        losses, hits = score(self.test)
        test_loss, test_accuracy = mean_scores(losses, hits)
        by_slice = slice_losses(losses, self.slices)
        return {
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "late_loss": late_loss(losses),
            "slice_losses": {self.slice_names[i]: loss for i, loss in by_slice.items()},
        }
