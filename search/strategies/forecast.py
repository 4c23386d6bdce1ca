"""What to expect of genomes that were not evaluated, in the terms a strategy selects by."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.candidate import Candidate, Proposal
from search.evolution import Evolution, matching
from search.strategies.prediction import Array, Embedding, Model, Warp
from supernet.genes import Genome

MARGIN = 1.0  # of the reference point beyond the worst that was told, in standard deviations of all that was


class Forecast:
    """Scores of genomes that were not evaluated: exact where they are known, from a model where not.

    A point is what is minimized: each objective, or the fitness, no score below its floor, warped. As long as
    nothing feasible was told it is the violation alone.

    Args:
        strategy: whose objectives, fitness, floors, budgets and known scores these are.
        told: all candidates with scores.
        fitted: those among them that models are fitted to.

    Attributes:
        front: points of what new ones have to add to; dominated ones do no harm (members, dimensions).
        reference: point that hypervolume is taken to (dimensions).
    """

    def __init__(self, strategy: Evolution, told: Sequence[Candidate], fitted: Sequence[Candidate]) -> None:
        self.strategy, self.embedding = strategy, Embedding(strategy.space)
        weighted = [name for key in strategy.weights for name in matching(told[0].scores, key)]
        names = weighted or list(strategy.objectives)
        known = strategy.known(told[0].genome)
        self.exact: dict[Genome, Mapping[str, float]] = {}
        self.known = [name for name in names if name in known]
        targets = {name: np.array([c.scores[name] for c in fitted]) for name in names if name not in known}
        # Budgets on known scores are met by construction; a candidate that misses them says nothing of the others.
        missed = np.array([c.violation if c.violation and strategy.fits(c.genome) else 0.0 for c in fitted])
        if missed.any():
            targets["violation"] = missed
        self.tolerance = float(np.quantile(missed[missed > 0], 0.1)) / 2 if missed.any() else 0.0
        rows = self.embedding([c.genome for c in fitted])
        self.models = {}
        for name, column in targets.items():
            warp = Warp(column)
            self.models[name] = warp, Model(self.embedding, rows, warp(column))

        feasible = [i for i, c in enumerate(told) if c.feasible]
        self.only_violation = "violation" in targets and not feasible
        seen = {name: np.array([c.scores[name] for c in told]) for name in names}
        values = self._values({**seen, "violation": np.array([c.violation for c in told])})
        self.warps = [Warp(column) for column in values.T]
        points = self._warped(values)
        self.front = points[list(range(len(told))) if self.only_violation else feasible]
        self.reference = points.max(0) + MARGIN

    def draw(self, genomes: Sequence[Genome], n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return joint draws of points (n, genomes, dimensions) and whether they are feasible (n, genomes)."""
        scores = self._scores(genomes, lambda model, rows: model.draw(rows, n, rng))
        points = self._warped(self._values(scores))
        feasible = np.ones(points.shape[:2])
        if "violation" in scores and not self.only_violation:
            feasible = (scores["violation"] <= self.tolerance).astype(float)
        return points, feasible

    def candidates(self, proposals: Sequence[Proposal]) -> list[Candidate]:
        """Return proposals as candidates with the scores expected of them; ids count down from -1."""
        scores = self._scores([p.genome for p in proposals], lambda model, rows: model.mean(rows)[None])
        violation = scores.pop("violation", np.zeros((1, len(proposals))))[0]
        violation = np.where(violation > self.tolerance, violation, 0.0)
        return [
            Candidate(-1 - i, p.genome, {n: float(s[0, i]) for n, s in scores.items()}, float(violation[i]), p.lineage)
            for i, p in enumerate(proposals)
        ]

    def _scores(self, genomes: Sequence[Genome], read: Callable[[Model, Array], Array]) -> dict[str, Array]:
        """Return each score, and the violation where it has a model, as (draws or 1, genomes)."""
        rows = self.embedding(genomes)
        scores = {name: warp.inverse(read(model, rows)) for name, (warp, model) in self.models.items()}
        draws = max([len(s) for s in scores.values()], default=1)
        if self.known:
            new = [genome for genome in genomes if genome not in self.exact]
            self.exact |= {genome: self.strategy.known(genome) for genome in new}
        for name in self.known:
            scores[name] = np.tile([self.exact[genome][name] for genome in genomes], (draws, 1))
        return scores

    def _values(self, scores: Mapping[str, Array]) -> Array:
        """Return what is minimized, dimensions last."""
        if self.only_violation:
            return scores["violation"][..., None]
        if self.strategy.weights:
            return np.asarray(self.strategy.value(scores))[..., None]
        floors = self.strategy.floors
        return np.stack([np.maximum(scores[n], floors.get(n, -np.inf)) for n in self.strategy.objectives], -1)

    def _warped(self, values: Array) -> Array:
        return np.stack([warp(values[..., k]) for k, warp in enumerate(self.warps)], -1)
