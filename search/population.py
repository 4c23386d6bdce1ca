"""The first population: what is known before the search begins."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.candidate import Lineage, Proposal
from search.evolution import Fits
from search.operators import shrink
from supernet.gates import draw
from supernet.genes import Genome, SearchSpace
from supernet.randomness import generator


def first_population(
    space: SearchSpace,
    gates: Mapping[str, Any],
    fits: Fits,
    size: int,
    seed: int,
    gate_samples: int,
    random: int,
    sensitivity: int = 0,
    solutions: Callable[[int], list[tuple[str, Genome]]] | None = None,
) -> list[Proposal]:
    """Return the baselines, the sensitivities' solutions, the gates' modes and samples, and random draws.

    Duplicates are left out.

    Baselines stay as they are, within the budget or not: they are what a result is compared with.

    Args:
        space: the genes.
        gates: content of gates.json.
        fits: whether a genome meets the budgets known beforehand; gate samples and random draws are
            shrunk until they do.
        size: how many proposals at most.
        seed: of the search.
        gate_samples: drawn from each set of gates, beside its mode; 0: not even that.
        random: how many are drawn at random.
        sensitivity: how many solutions are asked for.
        solutions: returns up to so many, with labels, within the budget; None where no sensitivity was measured.
    """
    proposals = [Proposal(genome, Lineage(0, name, seed=seed)) for name, genome in space.baselines()]
    if solutions is not None and sensitivity:
        proposals += [Proposal(genome, Lineage(0, label, seed=seed)) for label, genome in solutions(sensitivity)]
    sets: Sequence[Any] = gates["history"][-1]["probabilities"] if gates["history"] else []
    rng = generator(seed, "first population")
    budgets = [f"{b:g} MB" for b in gates["budgets_mb"]] + [f"{b:g} ms" for b in gates.get("budgets_ms", ())]
    for budget, mode, rows in zip(budgets, gates["modes"], sets, strict=False):
        if not gate_samples:
            break
        genome = shrink(space, space.check(mode), fits, rng)
        proposals.append(Proposal(genome, Lineage(0, f"gates mode {budget}", seed=seed)))
        probabilities = dict(zip(gates["genes"], rows, strict=True))
        for _ in range(gate_samples):
            genome = shrink(space, draw(space, probabilities, rng), fits, rng)
            proposals.append(Proposal(genome, Lineage(0, f"gates sample {budget}", seed=seed)))
    for _ in range(random):
        genome = shrink(space, space.sample_spread(rng), fits, rng)
        proposals.append(Proposal(genome, Lineage(0, "random", seed=seed)))
    unique = {p.genome: p for p in reversed(proposals)}
    return [p for p in proposals if unique.get(p.genome) is p][:size]
