"""Regularized evolution."""

from collections.abc import Sequence

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Breeding
from supernet.errors import UserError


class Aging(Breeding):
    """Regularized evolution (Real et al., arXiv 1802.01548): the oldest parent dies, however good it is."""

    def __init__(self, *args: object, tournament: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if tournament < 1:
            raise UserError(f"evolution.tournament must be 1 or more, got {tournament}")
        self.tournament = tournament

    def _propose(self, rng: np.random.Generator) -> Proposal:
        return self._breed(lambda: self._tournament(self.tournament, rng), rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = [*self.parents, *candidates][-self.n_parents :]
