"""Which channels or heads a matrix needs least, when those that are left make up for those that go."""

from collections.abc import Iterable

import torch
from torch import Tensor

RIDGE = 1e-4  # added to the moments, as a share of their mean diagonal
ROUNDS = 128  # in which units go, at least: some at a time where there are many more


def second_moments(reads: Iterable[Tensor]) -> Tensor:
    """Return the mean of x^T x (channels, channels), in float64, of what comes in parts (..., channels)."""
    total, n = torch.zeros(()), 0
    for read in reads:
        rows = read.flatten(0, -2).double()
        total, n = rows.T @ rows + total.to(rows), n + len(rows)
    return total / n


def elimination_order(moments: Tensor, weight: Tensor, unit: int = 1) -> Tensor:
    """Return units in the order of importance (channels / unit,): those that are eliminated first come last.

    Unit u goes when the trace of weight[:, u] ([H^-1]_uu)^-1 weight[:, u]^T is smallest: how much the product's squared
    error grows if it goes and all others are refitted, H being the second moments (optimal brain surgeon, Hassibi and
    Stork 1992; for whole channels and heads ZipLM, arXiv 2302.04089, equation 2). Unlike a score for each unit by
    itself, it takes two that say the same for one.

    Args:
        moments: `second_moments` of what the matrix reads; of fewer rows than channels they say little.
        weight: of the matrix (out, channels).
        unit: neighboring channels that go together, as those of a head.
    """
    weight, ridge = weight.double(), RIDGE * moments.diagonal().mean().clamp_min(1e-30)
    inverse = torch.linalg.inv(moments + ridge * torch.eye(len(moments)).to(moments))
    left = torch.arange(len(inverse) // unit, device=weight.device)
    within = torch.arange(unit, device=weight.device)
    at_once, gone = max(1, len(left) // ROUNDS), []
    while len(left):
        least_first = _rises(inverse, weight, unit).argsort(stable=True)
        out, stay = least_first[:at_once], least_first[at_once:].sort().values
        gone.append(left[out])
        left = left[stay]
        out, stay = ((units.unsqueeze(1) * unit + within).flatten() for units in (out, stay))
        correction = torch.linalg.solve(inverse[out][:, out], inverse[out][:, stay])
        weight = weight[:, stay] - weight[:, out] @ correction
        inverse = inverse[stay][:, stay] - inverse[stay][:, out] @ correction
    return torch.cat(gone).flip(0)


def _rises(inverse: Tensor, weight: Tensor, unit: int) -> Tensor:
    """Return how much the squared error grows if a unit goes (units,)."""
    own = inverse.unflatten(0, (-1, unit)).unflatten(2, (-1, unit)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.T.unflatten(0, (-1, unit))  # (units, unit, out)
    return (torch.linalg.solve(own, columns) * columns).sum((1, 2))
