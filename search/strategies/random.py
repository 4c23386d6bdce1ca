"""Independent draws."""

from collections.abc import Sequence

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Evolution


class Random(Evolution):
    """Independent draws: what every other strategy has to beat."""

    def _propose(self, rng: np.random.Generator) -> Proposal:
        return self._random(rng)

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = list(candidates)
