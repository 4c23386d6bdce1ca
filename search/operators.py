"""Pure functions on genomes; the generator is handed in.

Layers are the groups of genes that differ in nothing but a number in their names (`SearchSpace.layers`);
a space without them has none of the layers' operators, which then return what they were given.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from supernet.genes import Genome, SearchSpace

Fits = Callable[[Genome], bool]
Weights = Sequence[Sequence[float]]
Operator = Callable[[SearchSpace, Genome, Fits, np.random.Generator], Genome]


def mutate(
    space: SearchSpace,
    genome: Genome,
    rate: float,
    rng: np.random.Generator,
    late: float = 0.0,
    weights: Weights | None = None,
) -> Genome:
    """Return a different genome: one gene or more, of any kind, get another choice.

    Args:
        space: the genes.
        genome: the parent.
        rate: mean number of changed genes (1 + Poisson(rate - 1)).
        rng: of this draw.
        late: chance that the genes before a random one are left alone; activations there can be reused.
        weights: of each choice of each gene, above 0: how often it is drawn. None: all alike.
    """
    free = [i for i, gene in enumerate(space) if len(gene.choices) > 1]
    for _ in range(100):
        part = free[int(rng.integers(len(free))) :] if late and free and rng.random() < late else free
        n = min(len(part), 1 + int(rng.poisson(max(0.0, rate - 1))))
        indices = list(genome)
        for i in rng.choice(part, size=n, replace=False):
            others = [k for k in range(len(space.genes[i].choices)) if k != indices[i]]
            indices[i] = others[rng.integers(len(others))] if weights is None else _drawn(others, weights[i], rng)
        child = space.canonical(indices)
        if child != genome:  # a change under a switched-off block is none
            return child
    return child


def _drawn(choices: Sequence[int], weights: Sequence[float], rng: np.random.Generator) -> int:
    chances = np.array([weights[k] for k in choices])
    return int(rng.choice(choices, p=chances / chances.sum()))


def cross(space: SearchSpace, first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
    """Return a genome that takes each gene from either parent (uniform crossover)."""
    take = rng.random(len(space)) < 0.5
    return space.canonical([a if t else b for a, b, t in zip(first, second, take, strict=True)])


def cross_layers(space: SearchSpace, first: Genome, second: Genome, rng: np.random.Generator) -> Genome:
    """Return a genome whose last layers are the second parent's and all else the first's (one-point crossover).

    The genes before the cut are the first parent's, those outside of layers too: the activations there are
    those of the first parent, and whoever kept them need not compute them again.
    """
    if len(space.layers) < 2:
        return first
    indices = list(first)
    for layer in space.layers[int(rng.integers(1, len(space.layers))) :]:
        for i in layer:
            indices[i] = second[i]
    return space.canonical(indices)


def copy_layer(space: SearchSpace, genome: Genome, fits: Fits, rng: np.random.Generator) -> Genome:
    """Return a genome in which a layer has all choices of another one that differs."""
    pair = _two_layers(space, genome, rng)
    return space.canonical(_replaced(genome, pair[:1], pair[1:])) if pair else genome


def swap_layers(space: SearchSpace, genome: Genome, fits: Fits, rng: np.random.Generator) -> Genome:
    """Return a genome in which two layers that differ have changed places."""
    pair = _two_layers(space, genome, rng)
    return space.canonical(_replaced(genome, pair, pair[::-1])) if pair else genome


def _two_layers(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return two layers of the same genes but different choices, or nothing."""
    layers = [(group, layer) for group in space.alike for layer in group]
    for k in rng.permutation(len(layers)):
        group, one = layers[k]
        others = [other for other in group if any(genome[i] != genome[j] for i, j in zip(one, other, strict=True))]
        if others:
            return [one, others[rng.integers(len(others))]]
    return []


def _replaced(genome: Genome, to: list[tuple[int, ...]], source: list[tuple[int, ...]]) -> list[int]:
    indices = list(genome)
    for layer, other in zip(to, source, strict=True):
        for i, j in zip(layer, other, strict=True):
            indices[i] = genome[j]
    return indices


def switch_levels(space: SearchSpace, genome: Genome, fits: Fits, rng: np.random.Generator) -> Genome:
    """Return a genome with one gene a choice up and others down, as many as it takes to fit.

    With room to spare nothing has to go down; in half of these cases one gene does all the same, so that
    spare room is used by some and an unknown price is paid by others.

    Args:
        space: the genes.
        genome: the parent.
        fits: whether a genome meets the budget; so does the result, if lowering all but the raised gene and
            its switch can get there.
        rng: of this draw.
    """
    active = space.active(genome)
    raisable = [i for i in active if genome[i] < len(space.genes[i].choices) - 1]
    if not raisable:
        return genome
    up = raisable[rng.integers(len(raisable))]
    kept = {up, space.position.get(space.genes[up].needs or "")}
    child = space.canonical([index + (i == up) for i, index in enumerate(genome)])
    pay = rng.random() < 0.5
    while pay or not fits(child):
        lowerable = [i for i in space.lowerable(child) if i not in kept]
        if not lowerable:
            break
        child = space.lowered(child, lowerable[rng.integers(len(lowerable))])
        pay = False
    return child


ONE_PARENT: Mapping[str, Operator] = {
    "copy layer": copy_layer,
    "swap layers": swap_layers,
    "switch levels": switch_levels,
}


def vary(
    space: SearchSpace,
    genome: Genome,
    shares: Mapping[str, float],
    rate: float,
    fits: Fits,
    rng: np.random.Generator,
    late: float = 0.0,
    weights: Weights | None = None,
) -> tuple[str, Genome]:
    """Return the name of an operator and the child it makes of a genome.

    Args:
        space: the genes.
        genome: the parent.
        shares: of the operators in `ONE_PARENT`; the rest mutates, and so does what an operator left as it was.
        rate: of `mutate`.
        fits: whether a genome meets the budget.
        rng: of this draw.
        late: of `mutate`.
        weights: of `mutate`.
    """
    point = rng.random()
    for name, share in shares.items():
        point -= share
        if point < 0:
            child = ONE_PARENT[name](space, genome, fits, rng)
            if child != genome:
                return name, child
            break
    return "mutate", mutate(space, genome, rate, rng, late, weights)


def shrink(space: SearchSpace, genome: Genome, fits: Fits, rng: np.random.Generator) -> Genome:
    """Lower random genes, one choice at a time, until the genome fits (or nothing is left to lower)."""
    while not fits(genome):
        lowerable = space.lowerable(genome)
        # Switching blocks off is the last resort: it is the largest step there is.
        gentle = [i for i in lowerable if space.genes[i].kind != "switch"] or lowerable
        if not gentle:
            break
        genome = space.lowered(genome, int(rng.choice(gentle)))
    return genome


def difference(space: SearchSpace, parent: Genome, child: Genome) -> tuple[str, ...]:
    """Return the names of the genes in which two genomes differ."""
    return tuple(gene.name for gene, a, b in zip(space, parent, child, strict=True) if a != b)
