"""Surrogate-assisted search: a cheap model ranks many, the best are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Breeding
from supernet.errors import UserError
from supernet.genes import Genome

if TYPE_CHECKING:
    from search.strategies.forecast import Forecast
    from search.strategies.prediction import Array

DRAWS, DIRECTIONS = 32, 64  # of the expectation: joint draws from the models, directions of the hypervolume
ATTEMPTS = 3  # for each member of the pool to be a new one: a pool may come short, where space runs out
FIXED_COST = 0.15  # of scoring: the output head and the loss, which every candidate pays for
SHORTLIST = 256  # members of the pool, by what each would add alone, that a batch is chosen from


class Surrogate(Breeding):
    """Evaluates what is expected to add most to the front, by a model of every score that is not known.

    A pool is bred from the parents (the best of all that was told) and then from those of the pool that the
    model likes best, beside random genomes. Joint draws from the models say what each member might add to
    the hypervolume of the front; a batch takes the best on the average over the draws, one after another,
    each as if those before it were evaluated (sequential greedy qEHVI: Daulton et al., arXiv 2006.05078).
    Hypervolume is taken along random directions (Deng and Zhang, IEEE TEVC 23(4), 2019), so any number of
    objectives will do. With a fitness there is one direction, and this is expected improvement.

    What a candidate might add is divided by a power of what scoring it costs (expected improvement per cost:
    Snoek et al., arXiv 1206.2944, section 3.2): activations behind first genes that it shares with a parent, or
    with the batches that are scored around the same time, need not be computed again.

    Args:
        pool: how many genomes are ranked.
        rounds: in how many parts the pool is bred; the best of the parts before are parents as well.
        random: share of the pool that is drawn at random.
        fitted: at most so many candidates are fitted to, the best half and the latest.
        thrift: power of the cost, 0 where all candidates cost the same; without effect in a space without layers.
        *args: of `Evolution`.
        **kwargs: of `Evolution`.
    """

    def __init__(
        self, *args: object, pool: int, rounds: int, random: float, fitted: int, thrift: float, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        for name, count, least in (("pool", pool, 1), ("rounds", rounds, 1), ("fitted", fitted, 2)):
            if count < least:
                raise UserError(f"evolution.{name} must be {least} or more, got {count}")
        if not 0 <= random <= 1:
            raise UserError(f"evolution.random must be from 0 to 1, got {random}")
        if thrift < 0:
            raise UserError(f"evolution.thrift must be 0 or more, got {thrift}")
        self.pool, self.rounds, self.random, self.fitted = pool, rounds, random, fitted
        self.thrift = thrift if self.space.layers else 0.0
        self.told: list[Candidate] = []

    def _propose(self, rng: np.random.Generator) -> Proposal:
        return self._breed(lambda: self._tournament(2, rng), rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.told += candidates
        self.parents = self.best([*self.parents, *candidates], self.n_parents)

    def _batch(self, n: int, taken: set[Genome], rng: np.random.Generator) -> list[Proposal]:
        from threadpoolctl import threadpool_limits

        from search.strategies.forecast import Forecast

        with threadpool_limits(1):  # sums in another order could tip a comparison
            forecast = Forecast(self, self.told, self._to_fit())
            pool = self._breed_pool(n, taken, forecast, rng)
            if not pool:
                return []
            near = [c.genome for c in [*self.parents, *self.told[-n:]]]
            chosen = [pool[i] for i in _choose(forecast, [p.genome for p in pool], near, self.thrift, n, rng)]
        taken.update(p.genome for p in chosen)
        return chosen

    def _to_fit(self) -> list[Candidate]:
        if len(self.told) <= self.fitted:
            return self.told
        latest = self.told[-(self.fitted // 2) :]
        return [*self.best(self.told[: -len(latest)], self.fitted - len(latest)), *latest]

    def _breed_pool(self, n: int, taken: set[Genome], forecast: Forecast, rng: np.random.Generator) -> list[Proposal]:
        """Return the pool: random genomes, children of the parents, then children of the best of these."""
        barred = set(taken)
        size = max(self.pool, n)
        pool = self._fresh(lambda: self._random(rng), round(self.random * size), barred, ATTEMPTS)
        part = -(-(size - len(pool)) // self.rounds)
        pool += self._fresh(lambda: self._propose(rng), part, barred, ATTEMPTS)
        genomes = {c.id: c.genome for c in self.told}
        for _ in range(self.rounds - 1):
            if not pool:
                break
            imagined = {-1 - i: p for i, p in enumerate(pool)}
            best = self.best(forecast.candidates(pool), self.n_parents)

            def propose(best: list[Candidate] = best, imagined: Mapping[int, Proposal] = imagined) -> Proposal:
                child = self._breed(lambda: best[rng.integers(len(best))], rng)
                return self._traced(child, imagined, genomes)

            pool += self._fresh(propose, part, barred, ATTEMPTS)
        return pool

    def _traced(self, child: Proposal, imagined: Mapping[int, Proposal], genomes: Mapping[int, Genome]) -> Proposal:
        """Return a child of members of the pool as one of their parents, which were evaluated."""
        between = [imagined[i].lineage for i in child.lineage.parents]
        parents = tuple(dict.fromkeys(i for lineage in between for i in lineage.parents))
        changed = self._changed(genomes[parents[0]], child.genome) if parents else ()
        operator = f"{between[0].operator}, {child.lineage.operator}"
        return Proposal(child.genome, replace(child.lineage, operator=operator, parents=parents, changed=changed))


def _choose(
    forecast: Forecast,
    genomes: Sequence[Genome],
    near: Sequence[Genome],
    thrift: float,
    n: int,
    rng: np.random.Generator,
) -> list[int]:
    """Return the indices of up to `n` genomes that together add most to the front for their cost, best first.

    Args:
        forecast: of scores.
        genomes: to choose from.
        near: genomes whose activations are likely to be there still.
        thrift: power of the cost.
        n: how many.
        rng: of this draw.
    """
    points, feasible = forecast.draw(genomes, DRAWS, rng)
    front, reference = forecast.front, forecast.reference
    n_objectives = points.shape[-1]
    directions = np.abs(rng.standard_normal((DIRECTIONS, n_objectives))) + 1e-9
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    best = np.zeros(DIRECTIONS)
    if len(front):
        best = _reach(front, reference, directions).max(0)
    reach = _reach(points, reference, directions) * feasible[..., None]  # (draws, genomes, directions)
    alone = np.maximum(reach - best, 0).mean((0, 2))
    rows = np.array(genomes)
    shared = _shared(rows, np.array(near))
    worth = alone / _cost(shared) ** thrift
    left = np.lexsort((-reach.mean((0, 2)), -worth))[: max(n, SHORTLIST)]  # ties, below, go by this order
    reach, best = reach[:, left], np.broadcast_to(best, (len(points), DIRECTIONS))
    rows, shared = rows[left], shared[left]
    chosen: list[int] = []
    for _ in range(min(n, len(left))):
        gain = np.maximum(reach - best[:, None], 0).mean((0, 2)) / _cost(shared) ** thrift
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, reach[:, chosen[-1]])
        shared = np.maximum(shared, _shared(rows, rows[chosen[-1:]]))
    return [int(left[i]) for i in chosen]


def _shared(rows: Array, others: Array) -> Array:
    """Return the share of its first genes that each row has in common with some other, the most there is."""
    common = np.logical_and.accumulate(rows[:, None] == others, axis=-1).mean(-1)
    return np.asarray(common.max(1))


def _cost(shared: Array) -> Array:
    """Return what scoring costs, as a share of the cost of a candidate that has nothing in common with others."""
    return FIXED_COST + (1 - FIXED_COST) * (1 - shared)


def _reach(points: Array, reference: Array, directions: Array) -> Array:
    """Return how far (to the power of the dimension) each point dominates along each direction."""
    reach = np.full((*points.shape[:-1], len(directions)), np.inf)
    for k in range(points.shape[-1]):
        np.minimum(reach, np.maximum(reference[k] - points[..., k], 0)[..., None] / directions[:, k], out=reach)
    return reach ** points.shape[-1]
