"""Learnable distributions over the choices of every gene, one set of them for each budget.

Relaxed with the Gumbel-softmax (Jang et al., arXiv 1611.01144, eq. 2): soft samples while the
temperature falls, later hard ones whose gradient is the soft sample's (straight-through).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from supernet.genes import Genome, SearchSpace

PADDING = -1e9  # finite, so that its zero probability has a zero gradient too, not 0 x inf


class Gates(nn.Module):
    """For each set, logits (n_genes, n_choices), padded where a gene has fewer choices.

    Sets are parameters of their own: a step that trains one leaves the others, and their momentum, alone.

    Args:
        space: the genes.
        n_sets: how many budgets are aimed at, each by a set of its own.
        keep_bias: initial log-odds of keeping what a switch could drop. Uniform gates drop half of all
            blocks from the start, and since a dropped block gets no gradient to come back, they stay so
            (skip collapse, DARTS-, arXiv 2009.01027).
    """

    def __init__(self, space: SearchSpace, n_sets: int, keep_bias: float) -> None:
        super().__init__()
        self.space = space
        n_choices = max(len(gene.choices) for gene in space)
        start = torch.full((len(space), n_choices), PADDING)
        for i, gene in enumerate(space):
            start[i, : len(gene.choices)] = 0
            if gene.kind == "switch":
                start[i, len(gene.choices) - 1] = keep_bias
        self.logits = nn.ParameterList([start.clone() for _ in range(n_sets)])

    @property
    def n_sets(self) -> int:
        """Number of sets of gates."""
        return len(self.logits)

    def probabilities(self) -> Tensor:
        """Return (n_sets, n_genes, n_choices); padding is 0.

        Not for a loss: what is stacked all gets a gradient, of zeros, with which an optimizer's momentum moves on.
        """
        return torch.stack(list(self.logits)).softmax(-1).detach()

    def expected(self, index: int) -> dict[str, Tensor]:
        """Return gene name -> probabilities of set `index`, whose gradient reaches the logits of that set only."""
        return self.distributions(self.logits[index].softmax(-1))

    def distributions(self, probabilities: Tensor) -> dict[str, Tensor]:
        """Return gene name -> probabilities over its choices, from one set's (n_genes, n_choices)."""
        rows = zip(self.space, probabilities.unbind(0), strict=True)
        return {gene.name: row[: len(gene.choices)] for gene, row in rows}

    def sample(self, index: int, temperature: float, hard: bool, noise: torch.Generator) -> dict[str, Tensor]:
        """Return a relaxed sample of set `index`, differentiable in the logits.

        Args:
            index: which set of gates.
            temperature: of the Gumbel-softmax; towards 0 samples become one-hot.
            hard: one-hot forward, soft backward.
            noise: a CPU generator.
        """
        logits = self.logits[index]
        uniform = torch.rand(logits.shape, generator=noise).clamp_min_(1e-20).to(logits.device)
        gumbel = -(-uniform.log()).clamp_min(1e-20).log()
        soft = ((logits + gumbel) / temperature).softmax(-1)
        if hard:
            one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
            soft = one_hot + soft - soft.detach()
        return self.distributions(soft)

    def entropy(self, index: int) -> Tensor:
        """Return the mean entropy, in nats, of the genes of set `index`."""
        logits = self.logits[index]
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum() / len(self.space)

    def mode(self, index: int) -> Genome:
        """Return the genome of every gene's likeliest choice."""
        best: list[int] = self.logits[index].argmax(-1).tolist()
        return self.space.canonical(best)


def draw(space: SearchSpace, probabilities: Mapping[str, list[float]], rng: np.random.Generator) -> Genome:
    """Draw a genome, every gene from its own distribution."""
    indices = []
    for gene in space:
        p = np.asarray(probabilities[gene.name])
        indices.append(int(rng.choice(len(gene.choices), p=p / p.sum())))
    return space.canonical(indices)
