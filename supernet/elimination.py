"""Which channels a matrix needs least, when those that are left make up for those that go."""

import torch
from torch import Tensor

RIDGE = 1e-4  # added to the moments, as a share of their mean diagonal
ROUNDS = 128  # in which channels go, at least: some at a time where there are many more


def elimination_order(read: Tensor, weight: Tensor) -> Tensor:
    """Return the channels in the order of importance (channels,): those that are eliminated first come last.

    Channel j goes when the sum of squares of weight[:, j] / [H^-1]_jj is smallest: how much the product's squared error
    grows if it goes and all others are refitted, H being the second moments of what is read (optimal brain surgeon,
    Hassibi and Stork 1992; for whole channels ZipLM, arXiv 2302.04089, equation 2). Unlike a score for each channel by
    itself, it takes two that say the same for one.

    Args:
        read: what the matrix reads (n, channels).
        weight: of the matrix (out, channels).
    """
    read, weight = read.double(), weight.double()
    moments = read.T @ read / len(read)
    moments.diagonal().add_(RIDGE * moments.diagonal().mean().clamp_min(1e-30))
    inverse = torch.linalg.inv(moments)
    left = torch.arange(len(inverse), device=weight.device)
    at_once, gone = max(1, len(left) // ROUNDS), []
    while len(left):
        least_first = (weight.square().sum(0) / inverse.diagonal()).argsort(stable=True)
        out, stay = least_first[:at_once], least_first[at_once:].sort().values
        gone.append(left[out])
        correction = torch.linalg.solve(inverse[out][:, out], inverse[out][:, stay])
        weight = weight[:, stay] - weight[:, out] @ correction
        inverse = inverse[stay][:, stay] - inverse[stay][:, out] @ correction
        left = left[stay]
    return torch.cat(gone).flip(0)
