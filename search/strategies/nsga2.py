"""NSGA-II."""

from collections.abc import Sequence

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Breeding


class NSGA2(Breeding):
    """NSGA-II (Deb et al., IEEE TEC 6(2), 2002): the best of parents and children by rank and crowding."""

    def _propose(self, rng: np.random.Generator) -> Proposal:
        return self._breed(lambda: self._tournament(2, rng), rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = self.best([*self.parents, *candidates], self.n_parents)
