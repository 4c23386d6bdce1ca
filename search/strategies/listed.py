"""Strategies that do not search: they ask for what is known beforehand, and end."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Evolution


class Listed(Evolution):
    """Asks for the first population and then for nothing, which ends the search."""

    def ask(self, n: int, rng: np.random.Generator) -> list[Proposal]:
        """Return the next `n` proposals; none at the end."""
        unseen = [p for p in self.first if p.genome not in self.seen]
        return [replace(p, genome=self.lift(p.genome)) for p in unseen[:n]]

    def _propose(self, rng: np.random.Generator) -> Proposal:
        raise NotImplementedError("a list is all there is to ask for")

    def _select(self, candidates: Sequence[Candidate]) -> None:
        self.parents = self.best([*self.parents, *candidates], self.n_parents)
