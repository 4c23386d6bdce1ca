"""A (1 + lambda) search that stays at the budget."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Evolution, pareto_front
from search.operators import switch_levels


class LevelSwitch(Evolution):
    """All children of a batch come from the best candidate so far, by switching levels within the budget.

    After EvoPress (Sieberling et al., arXiv 2410.14649). The best is that of least violation, then of the
    best fitness, or of the best first objective where there is none: with a budget the others are held by
    it. Several objectives that nothing holds (no fitness, no budget) have no single best; then each child's
    parent is drawn from the front, of which the `population` members that lie least crowded are kept.

    Args:
        switches: mean number of genes that go up.
        *args: of `Evolution`.
        **kwargs: of `Evolution`.
    """

    def __init__(self, *args: object, switches: float, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.switches, self.missed = switches, False  # missed: whether a budget was

    @cached_property
    def single(self) -> bool:
        """Whether there is one best: something holds the objectives beside the first."""
        return bool(self.weights) or len(self.objectives) == 1 or not self.fits(self.space.largest)

    def _propose(self, rng: np.random.Generator) -> Proposal:
        parent = self.parents[rng.integers(len(self.parents))]
        genome = parent.genome
        for _ in range(1 + int(rng.poisson(max(0.0, self.switches - 1)))):
            genome = switch_levels(self.space, genome, self.fits, rng)
        return self._child("switch levels", genome, [parent], rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        pool = [*self.parents, *candidates]
        self.missed |= any(c.violation for c in pool)
        if self.single or self.missed:
            first = self.objectives[0]
            value = [self.value(c.scores) if self.weights else c.scores[first] for c in pool]
            best = min(range(len(pool)), key=lambda i: (pool[i].violation, value[i], pool[i].id))
            self.parents = [pool[best]]
        else:
            self.parents = self.best(pareto_front(pool, self.objectives), self.n_parents)
