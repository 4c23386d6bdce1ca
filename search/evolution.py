"""Ask and tell: what every strategy shares. No torch, no model.

A strategy's state is a function of what it was told, and `ask` draws from the generator it is given, so
a search that is killed goes on exactly by telling it the journal again.

Comparison is feasibility first (Deb et al., NSGA-II, IEEE TEC 6(2), 2002): the smaller violation of the
budgets wins; among equals the fitness where there is one, else the non-dominated rank and then the
crowding distance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from search.candidate import Candidate, Lineage, Proposal
from search.fitness import checked_weights, matching, weighted
from search.operators import Fits, Weights, cross, cross_layers, difference, mutate, shrink, vary
from search.subspace import Subspace, check_kinds
from supernet.errors import UserError
from supernet.genes import KINDS, Genome, SearchSpace
from supernet.randomness import generator

__all__ = ["Breeding", "Evolution", "Fits", "Known", "Order", "matching", "pareto_front", "ranks", "weighted"]

Known = Callable[[Genome], Mapping[str, float]]
Order = tuple[float, float, float]  # compared left to right, smaller is better


def ranks(candidates: Sequence[Candidate], objectives: Sequence[str], floors: Mapping[str, float]) -> list[Order]:
    """Return for each candidate (violation, non-dominated rank, -crowding distance).

    Feasible candidates are ranked among themselves, and so are the others: a net that misses the budget
    takes nothing from one that meets it. A score below its floor counts as the floor.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    result: list[Order] = [(0.0, 0, 0.0)] * len(candidates)
    for feasible in (True, False):
        members = [i for i, c in enumerate(candidates) if c.feasible == feasible]
        if not members:
            continue
        points = np.array([[max(candidates[i].scores[n], floors.get(n, -np.inf)) for n in objectives] for i in members])
        for rank, front in enumerate(NonDominatedSorting().do(points)):
            for k, distance in zip(front, calc_crowding_distance(points[front]), strict=True):
                result[members[k]] = (candidates[members[k]].violation, rank, -float(distance))
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
        fits: whether a genome meets the budgets that are known without evaluating it; None: there are none.
        known: the scores that are known without evaluating; None: there are none.
        floors: scores below which there is nothing to gain. Whoever may spend 2 MB has no use for parents
            of 0.1 MB, and without a floor much of the front that is spread out lies there.
        preferences: how far each choice of each gene is to be preferred; 0: neither way. None: nothing is known.
        population: how many candidates are parents.
        fitness: weights of scores. With any, selection is by their weighted sum instead of the Pareto rank;
            over several targets (`decode_ms@phone`) a score counts as its mean. None is no weight.
        vary: kinds of genes that may change; the others are held at the choices of a base.
        bases: genomes, in ascending cost; None: the largest. Without effect where all kinds vary.
        evaluations: how many candidates will be told of in all, where that is known.

    Attributes:
        whole: the space that is asked about and told of.
        space: what is searched: all of it, or a `Subspace`. Genomes of parents, and all that strategies and
            operators work on, are of this one.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        first: Sequence[Proposal] = (),
        seed: int = 0,
        fits: Fits | None = None,
        known: Known | None = None,
        floors: Mapping[str, float] | None = None,
        preferences: Weights | None = None,
        *,
        population: int,
        fitness: Mapping[str, float | None] | None = None,
        vary: Sequence[str] = KINDS,
        bases: Sequence[Genome] | None = None,
        evaluations: int | None = None,
    ) -> None:
        if population < 2:
            raise UserError(f"evolution.population must be 2 or more, got {population}")
        kinds = check_kinds(vary, "evolution.vary")
        self.part = Subspace(space, kinds, bases or [space.largest]) if kinds != KINDS else None
        self.whole, self.space = space, space if self.part is None else self.part
        self.objectives, self.evaluations = tuple(objectives), evaluations
        self.seed, self.n_parents = seed, population
        self.fits: Fits = (lambda genome: True) if fits is None else lambda genome: fits(self.lift(genome))
        self.known: Known = (lambda genome: {}) if known is None else lambda genome: known(self.lift(genome))
        self.floors = dict(floors or {})
        self.preferences = preferences if preferences is None or self.part is None else self.part.widened(preferences)
        self.weights = checked_weights(fitness or {})
        self.parents: list[Candidate] = []
        self.seen: set[Genome] = set()
        self.generation = 0
        self.first = self._held(first)

    def lift(self, genome: Genome) -> Genome:
        """Return the genome of the whole space that one of the searched space stands for."""
        return genome if self.part is None else self.part.lift(genome)

    def ask(self, n: int, rng: np.random.Generator) -> list[Proposal]:
        """Return up to `n` proposals that were never told; fewer only when the space runs out."""
        proposals = [p for p in self.first if p.genome not in self.seen][:n]
        taken = self.seen | {p.genome for p in proposals}
        if self.parents and len(proposals) < n:
            proposals += self._batch(n - len(proposals), taken, rng)
        proposals += self._fresh(lambda: self._random(rng), n - len(proposals), taken)
        return [replace(p, genome=self.lift(p.genome)) for p in proposals]

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Take in a batch that was asked for.

        Those that were stopped, or have a score that is no finite number, are never proposed again, nothing else.
        """
        if self.part is not None:
            candidates = [replace(c, genome=self.part.project(c.genome)) for c in candidates]
        self.seen.update(c.genome for c in candidates)
        scored = [c for c in candidates if c.whole]
        if scored:
            self._select(scored)
        self.generation += 1

    def order(self, candidates: Sequence[Candidate]) -> list[Order]:
        """Return what candidates compare by, smaller is better; ties are broken by id."""
        if self.weights:
            return [(c.violation, float(self.value(c.scores)), 0.0) for c in candidates]
        return ranks(candidates, self.objectives, self.floors)

    def value(self, scores: Mapping[str, Any]) -> Any:
        """Return the fitness of scores; see `weighted`."""
        return weighted(self.weights, scores)

    def best(self, candidates: Sequence[Candidate], n: int) -> list[Candidate]:
        """Return the `n` best of some candidates, in the order given."""
        order = self.order(candidates)
        chosen = sorted(range(len(candidates)), key=lambda i: (order[i], candidates[i].id))[:n]
        return [candidates[i] for i in sorted(chosen)]

    @abstractmethod
    def _propose(self, rng: np.random.Generator) -> Proposal:
        """Return one proposal from the parents; what was asked for before is dropped."""

    @abstractmethod
    def _select(self, candidates: Sequence[Candidate]) -> None:
        """Decide who the parents are from now on."""

    def _batch(self, n: int, taken: set[Genome], rng: np.random.Generator) -> list[Proposal]:
        """Return up to `n` proposals that are not among `taken`, and add them there."""
        return self._fresh(lambda: self._propose(rng), n, taken)

    def _fresh(
        self, propose: Callable[[], Proposal], n: int, taken: set[Genome], attempts: int = 100
    ) -> list[Proposal]:
        """Return up to `n` proposals that are not among `taken`, and add them there; `attempts` for each."""
        proposals: list[Proposal] = []
        for _ in range(attempts * n):
            if len(proposals) == n:
                break
            proposal = propose()
            if proposal.genome not in taken:
                proposals.append(proposal)
                taken.add(proposal.genome)
        return proposals

    def _random(self, rng: np.random.Generator) -> Proposal:
        genome = shrink(self.space, self.space.sample_spread(rng), self.fits, rng)
        return Proposal(genome, Lineage(self.generation, "random", seed=self.seed))

    def _child(self, operator: str, genome: Genome, parents: Sequence[Candidate], rng: np.random.Generator) -> Proposal:
        fitted = shrink(self.space, genome, self.fits, rng)
        if fitted != genome:
            operator += " + shrink"
        changed = self._changed(parents[0].genome, fitted)
        return Proposal(fitted, Lineage(self.generation, operator, tuple(p.id for p in parents), changed, self.seed))

    def _changed(self, parent: Genome, child: Genome) -> tuple[str, ...]:
        """Return the names of the genes of the whole space in which two genomes differ."""
        return difference(self.whole, self.lift(parent), self.lift(child))

    def _held(self, first: Sequence[Proposal]) -> list[Proposal]:
        """Return the first population in the searched space; what had to change there is made to fit again."""
        if self.part is None:
            return list(first)
        rng, held, exact = generator(self.seed, "held"), dict[Genome, Proposal](), set[Genome]()
        for proposal in first:
            genome, lineage = self.part.project(proposal.genome), proposal.lineage
            if self.lift(genome) != proposal.genome:
                genome = shrink(self.space, genome, self.fits, rng)
                held.setdefault(genome, Proposal(genome, replace(lineage, operator=f"{lineage.operator} + hold")))
            elif genome not in exact:  # whoever was meant is named, not what happens to come out the same
                held[genome] = Proposal(genome, lineage)
                exact.add(genome)
        return list(held.values())

    def _tournament(self, size: int, rng: np.random.Generator) -> Candidate:
        """Return the best of `size` parents drawn with replacement."""
        if self._ordered is not self.parents:
            self._ordered, self._orders = self.parents, self.order(self.parents)
        drawn = (int(i) for i in rng.integers(len(self.parents), size=size))
        return self.parents[min(drawn, key=lambda i: self._orders[i])]

    _ordered: list[Candidate] | None = None
    _orders: list[Order]


class Breeding(Evolution):
    """Children of one or two parents by all operators.

    Args:
        crossover: share of children with two parents: half by uniform crossover and mutation, half by
            one-point crossover between layers (all the former kind where there are no layers).
        layer_moves: share of the others that copy a layer or swap two, where there are layers.
        level_switches: share of the others that switch levels; the rest mutates.
        mutations: mean number of genes that a mutation changes.
        late: share of the mutations that leave the genes before a random one alone.
        bias: how much mutations follow the preferences: a choice is drawn exp(bias x preference) as often.
        *args: of `Evolution`.
        **kwargs: of `Evolution`.
    """

    def __init__(
        self,
        *args: object,
        crossover: float,
        layer_moves: float,
        level_switches: float,
        mutations: float,
        late: float = 0.0,
        bias: float = 0.0,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        moved = layer_moves + level_switches
        for name, share in (("crossover", crossover), ("layer_moves + level_switches", moved), ("late", late)):
            if not 0 <= share <= 1:
                raise UserError(f"evolution.{name} must be from 0 to 1, got {share}")
        if bias < 0:
            raise UserError(f"evolution.bias must be 0 or more, got {bias}")
        preferences = self.preferences if bias else None
        self.choice_weights = preferences and [[math.exp(bias * p) for p in choices] for choices in preferences]
        self.crossover, self.mutations, self.late = crossover, mutations, late
        moves = layer_moves / 2 if self.space.alike else 0.0
        self.shares = {"copy layer": moves, "swap layers": moves, "switch levels": level_switches}

    def _breed(self, pick: Callable[[], Candidate], rng: np.random.Generator) -> Proposal:
        """Return a child of parents that `pick` returns."""
        parent = pick()
        if rng.random() >= self.crossover:
            operator, genome = vary(
                self.space,
                parent.genome,
                self.shares,
                self.mutations,
                self.fits,
                rng,
                self.late,
                self.choice_weights,
            )
            return self._child(operator, genome, [parent], rng)
        other = pick()
        if rng.random() < 0.5 and len(self.space.layers) > 1:
            genome = cross_layers(self.space, parent.genome, other.genome, rng)
            if genome not in (parent.genome, other.genome):
                return self._child("cross layers", genome, [parent, other], rng)
        genome = cross(self.space, parent.genome, other.genome, rng)
        genome = mutate(self.space, genome, self.mutations, rng, self.late, self.choice_weights)
        return self._child("cross + mutate", genome, [parent, other], rng)
