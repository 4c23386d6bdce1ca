"""Structure first, then formats: what choosing both together is compared with."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.candidate import Candidate, Lineage, Proposal
from search.evolution import Known
from search.operators import Fits, difference
from search.strategies.surrogate import Surrogate
from search.subspace import check_kinds
from supernet.errors import UserError
from supernet.genes import KINDS, Genome

GIVEN = {"space", "objectives", "first", "seed", "fits", "known", "floors"}  # not settings
TOO_LARGE = 1e-6  # the least violation of a structure that is too large even in the reference format


class Sequential(Surrogate):
    """Two searches one after the other, each as `Surrogate` does it.

    The first varies the structure, every format the dearest, so quality is that of unrounded weights. Budgets, and
    scores that are known without evaluating, are taken as if every weight were in a reference format; budgets on
    other scores do not count yet. The best structures by rank and crowding distance (by fitness, where there is
    one) are kept: without a budget they lie spread along the front. The second search varies the formats of
    these, structures mixed as the scores tell, under the budgets as they are.

    Args:
        share: of the evaluations that go to the structure.
        reference: format that sizes are counted in while the structure is chosen.
        structures: how many are kept.
        *args: of `Evolution`; `evaluations` must be given.
        **kwargs: of `Surrogate`; kinds that are not in `vary` never change.
    """

    def __init__(
        self,
        *args: object,
        share: float,
        reference: str,
        structures: int,
        vary: Sequence[str] = KINDS,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if not 0 < share < 1:
            raise UserError(f"evolution.share must be between 0 and 1, got {share}")
        if structures < 1:
            raise UserError(f"evolution.structures must be 1 or more, got {structures}")
        if self.evaluations is None:
            raise UserError("evolution=sequential needs to know how many evaluations there are")
        kinds = check_kinds(vary, "evolution.vary")
        if "format" not in kinds or len(kinds) < 2:
            raise UserError(f"evolution.vary={list(kinds)}: sequential needs formats and something before them")
        if reference not in self.whole.uniform_formats and any(gene.kind == "format" for gene in self.whole):
            known = ", ".join(self.whole.uniform_formats)
            raise UserError(f"evolution.reference={reference}: no format of all weights, which are {known}")
        self.reference, self.n_structures = reference, structures
        self.settings = {key: value for key, value in kwargs.items() if key not in GIVEN}
        self.n_first = max(1, round(share * self.evaluations))
        self.history: list[Candidate] = []
        self.second = False  # whether the second search has begun
        self.stage = self._search(
            self.first,
            [kind for kind in kinds if kind != "format"],
            [self.space.largest],
            lambda genome: self.fits(self._counted(genome)),
            lambda genome: self.known(self._counted(genome)),
        )

    def ask(self, n: int, rng: np.random.Generator) -> list[Proposal]:
        """Return up to `n` proposals that were never told; fewer where a search ends, none at the end of both."""
        self.stage.generation = self.generation
        if not self.second:
            proposals = self.stage.ask(min(n, self.n_first - len(self.history)), rng)
            if proposals:
                return proposals
            self._begin_formats()  # there are no further structures
        return self.stage.ask(n, rng)

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Take in a batch that was asked for."""
        if not self.second and any(self._of_formats(c.genome) for c in candidates):
            self._begin_formats()  # as `ask` did, before a kill
        self.stage.tell(candidates if self.second else [self._as_structure(c) for c in candidates])
        self.history += candidates
        self.generation += 1
        if not self.second and len(self.history) >= self.n_first:
            self._begin_formats()

    def _search(
        self, first: Sequence[Proposal], kinds: Sequence[str], bases: Sequence[Genome], fits: Fits, known: Known
    ) -> Surrogate:
        stage = Surrogate(
            self.whole,
            self.objectives,
            first,
            self.seed,
            fits,
            known,
            self.floors,
            vary=kinds,
            bases=bases,
            **self.settings,  # type: ignore[arg-type]
        )
        stage.generation = self.generation
        return stage

    def _begin_formats(self) -> None:
        """Keep the best structures, and begin to search their formats: the uniform ones first."""
        best = {c.id for c in self.stage.best(self.stage.told, self.n_structures)}
        kept = [c for c in self.history if c.id in best]
        # Bases are choices of a gene, which are in ascending cost.
        kept.sort(key=lambda c: (tuple(self.known(self._counted(c.genome)).values()), c.id))
        first = []
        for candidate in kept:
            for name in reversed(self.whole.uniform_formats):
                genome = self.whole.with_format(candidate.genome, name)
                changed = difference(self.whole, candidate.genome, genome)
                if self.fits(genome):
                    first.append(
                        Proposal(
                            genome, Lineage(self.generation, f"uniform {name}", (candidate.id,), changed, self.seed)
                        )
                    )
        bases = [c.genome for c in kept] or [self.whole.largest]
        self.stage, self.second = self._search(first, ["format"], bases, self.fits, self.known), True
        self.stage.tell(kept)
        self.stage.generation = self.generation

    def _as_structure(self, candidate: Candidate) -> Candidate:
        """Return a candidate of the first search as it is judged there."""
        counted = self._counted(candidate.genome)
        violation = 0.0 if self.fits(counted) else max(candidate.violation, TOO_LARGE)
        return replace(candidate, scores={**candidate.scores, **self.known(counted)}, violation=violation)

    def _counted(self, genome: Genome) -> Genome:
        """Return the genome with every weight in the reference format."""
        return self.whole.with_format(genome, self.reference)

    def _of_formats(self, genome: Genome) -> bool:
        """Return whether the first search cannot have asked for a genome."""
        part = self.stage.part
        return part is not None and part.lift(part.project(genome)) != genome
