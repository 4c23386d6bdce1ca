"""Strategies: ask for proposals, be told their scores. No torch, no model.

A strategy's state is a function of what it was told, and `ask` draws from the generator it is given, so
a search that is killed goes on exactly by telling it the journal again.

Comparison is feasibility first (Deb et al., NSGA-II, IEEE TEC 6(2), 2002): the smaller violation of the
budgets wins; among equals the non-dominated rank, then the crowding distance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.candidate import Candidate, Lineage, Proposal
from search.operators import cross, difference, mutate, shrink
from supernet.errors import UserError
from supernet.genes import Genome, SearchSpace

Fits = Callable[[Genome], bool]


def ranks(
    candidates: Sequence[Candidate], objectives: Sequence[str], floors: Mapping[str, float]
) -> list[tuple[float, int, float]]:
    """Return for each candidate (violation, non-dominated rank, -crowding distance); smaller is better.

    A score below its floor counts as the floor.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    points = np.array([[max(c.scores[n], floors.get(n, -np.inf)) for n in objectives] for c in candidates])
    fronts = NonDominatedSorting().do(points)
    result: list[tuple[float, int, float]] = [(0.0, 0, 0.0)] * len(candidates)
    for rank, front in enumerate(fronts):
        for i, distance in zip(front, calc_crowding_distance(points[front]), strict=True):
            result[i] = (candidates[i].violation, rank, -float(distance))
    return result


def pareto_front(candidates: Sequence[Candidate], objectives: Sequence[str]) -> list[Candidate]:
    """Return the feasible candidates that none other dominates, by the first objective."""
    feasible = [c for c in candidates if c.feasible]
    if not feasible:
        return []
    best = [c for c, (_, rank, _) in zip(feasible, ranks(feasible, objectives, {}), strict=True) if rank == 0]
    return sorted(best, key=lambda c: (c.scores[objectives[0]], c.id))


class Evolution(ABC):
    """Ask/tell.

    Args:
        space: the genes.
        objectives: names of the scores to minimize.
        first: proposals for the first population.
        seed: recorded in the lineage.
        fits: whether a genome meets the budgets that are known without evaluating it.
        population: how many candidates are parents.
        floors: scores below which there is nothing to gain. Whoever may spend 2 MB has no use for parents
            of 0.1 MB, and without a floor much of the front that is spread out lies there.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        first: Sequence[Proposal],
        seed: int,
        fits: Fits,
        population: int,
        floors: Mapping[str, float] | None = None,
    ) -> None:
        if population < 2:
            raise UserError(f"evolution.population must be 2 or more, got {population}")
        self.space, self.objectives, self.first = space, tuple(objectives), list(first)
        self.seed, self.fits, self.n_parents = seed, fits, population
        self.floors = dict(floors or {})
        self.parents: list[Candidate] = []
        self.seen: set[Genome] = set()
        self.generation = 0

    def ask(self, n: int, rng: np.random.Generator) -> list[Proposal]:
        """Return up to `n` proposals that were never told; fewer only when the space runs out."""
        proposals: list[Proposal] = [p for p in self.first if p.genome not in self.seen][:n]
        taken = self.seen | {p.genome for p in proposals}
        for _ in range(200 * n):
            if len(proposals) == n:
                break
            proposal = self._propose(rng) if self.parents else self._random(rng)
            if proposal.genome not in taken:
                proposals.append(proposal)
                taken.add(proposal.genome)
        return proposals

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Take in the scores of a batch that was asked for."""
        self.seen.update(c.genome for c in candidates)
        self._select(candidates)
        self.generation += 1

    @abstractmethod
    def _propose(self, rng: np.random.Generator) -> Proposal:
        """Return one proposal from the parents."""

    @abstractmethod
    def _select(self, candidates: Sequence[Candidate]) -> None:
        """Decide who the parents are from now on."""

    def _random(self, rng: np.random.Generator) -> Proposal:
        genome = shrink(self.space, self.space.sample_spread(rng), self.fits, rng)
        return Proposal(genome, Lineage(self.generation, "random", seed=self.seed))

    def _child(self, operator: str, genome: Genome, parents: Sequence[Candidate], rng: np.random.Generator) -> Proposal:
        fitted = shrink(self.space, genome, self.fits, rng)
        if fitted != genome:
            operator += " + shrink"
        changed = difference(self.space, parents[0].genome, fitted)
        return Proposal(fitted, Lineage(self.generation, operator, tuple(p.id for p in parents), changed, self.seed))

    def _tournament(self, size: int, rng: np.random.Generator) -> Candidate:
        """Return the best of `size` parents drawn with replacement."""
        order = self._order()
        return self.parents[min((int(i) for i in rng.integers(len(self.parents), size=size)), key=lambda i: order[i])]

    def _order(self) -> list[tuple[float, int, float]]:
        if self._ranked is not self.parents:
            self._ranked, self._ranks = self.parents, ranks(self.parents, self.objectives, self.floors)
        return self._ranks

    _ranked: list[Candidate] | None = None
    _ranks: list[tuple[float, int, float]]


class Random(Evolution):
    """Independent draws: what every other strategy has to beat."""

    def _propose(self, rng: np.random.Generator) -> Proposal:
        return self._random(rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = list(candidates)


class Aging(Evolution):
    """Regularized evolution (Real et al., arXiv 1802.01548): the oldest dies, mutation only."""

    def __init__(self, *args: object, tournament: int, mutations: float, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.tournament, self.mutations = tournament, mutations

    def _propose(self, rng: np.random.Generator) -> Proposal:
        parent = self._tournament(self.tournament, rng)
        return self._child("mutate", mutate(self.space, parent.genome, self.mutations, rng), [parent], rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = [*self.parents, *candidates][-self.n_parents :]


class NSGA2(Evolution):
    """NSGA-II: crossover and mutation, parents are the best of parents and children by rank and crowding."""

    def __init__(self, *args: object, crossover: float, mutations: float, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.crossover, self.mutations = crossover, mutations

    def _propose(self, rng: np.random.Generator) -> Proposal:
        parent = self._tournament(2, rng)
        if rng.random() >= self.crossover:
            return self._child("mutate", mutate(self.space, parent.genome, self.mutations, rng), [parent], rng)
        other = self._tournament(2, rng)
        genome = mutate(self.space, cross(self.space, parent.genome, other.genome, rng), self.mutations, rng)
        return self._child("cross + mutate", genome, [parent, other], rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        pool = [*self.parents, *candidates]
        order = ranks(pool, self.objectives, self.floors)
        best = sorted(range(len(pool)), key=lambda i: (order[i], pool[i].id))[: self.n_parents]
        self.parents = [pool[i] for i in sorted(best)]
