"""Pure functions on genomes; the generator is handed in."""

from collections.abc import Callable

import numpy as np

from supernet.genes import Genome, SearchSpace


def mutate(space: SearchSpace, genome: Genome, rate: float, rng: np.random.Generator) -> Genome:
    """Return a different genome: one gene or more get another choice.

    Args:
        space: the genes.
        genome: the parent.
        rate: mean number of changed genes (1 + Poisson(rate - 1)).
        rng: of this draw.
    """
    free = [i for i, gene in enumerate(space) if len(gene.choices) > 1]
    for _ in range(100):
        n = min(len(free), 1 + int(rng.poisson(max(0.0, rate - 1))))
        indices = list(genome)
        for i in rng.choice(free, size=n, replace=False):
            others = [k for k in range(len(space.genes[i].choices)) if k != indices[i]]
            indices[i] = int(rng.choice(others))
        child = space.canonical(indices)
        if child != genome:  # a change under a switched-off block is none
            return child
    return child


def cross(space: SearchSpace, first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
    """Return a genome that takes each gene from either parent (uniform crossover)."""
    take = rng.random(len(space)) < 0.5
    return space.canonical([a if t else b for a, b, t in zip(first, second, take, strict=True)])


def shrink(space: SearchSpace, genome: Genome, fits: Callable[[Genome], bool], rng: np.random.Generator) -> Genome:
    """Lower random genes, one choice at a time, until the genome fits (or nothing is left to lower)."""
    while not fits(genome):
        lowerable = [i for i, index in enumerate(genome) if index > 0]
        # Switching blocks off is the last resort: it is the largest step there is.
        gentle = [i for i in lowerable if space.genes[i].kind != "switch"] or lowerable
        if not gentle:
            break
        i = int(rng.choice(gentle))
        genome = space.canonical([index - (k == i) for k, index in enumerate(genome)])
    return genome


def difference(space: SearchSpace, parent: Genome, child: Genome) -> tuple[str, ...]:
    """Return the names of the genes in which two genomes differ."""
    return tuple(gene.name for gene, a, b in zip(space, parent, child, strict=True) if a != b)
