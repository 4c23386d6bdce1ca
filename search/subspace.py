"""Part of a search space: some genes are held at the choices of a base genome, the others are free."""

from collections.abc import Sequence
from dataclasses import replace

from supernet.errors import UserError
from supernet.genes import KINDS, Gene, Genome, Kind, SearchSpace


class Subspace(SearchSpace):
    """The genomes of a space that equal one of some bases in all genes but those of certain kinds.

    It is a search space itself, with the genes of the whole one behind a first gene that says which base holds;
    a held gene has one choice. So whatever searches a space searches part of one, and its genomes are lifted to
    those of the whole space for all others.

    Args:
        whole: the space.
        kinds: of the genes that are free.
        bases: genomes of `whole` that differ in held genes, in ascending cost. Several need switches held and
            formats free, or two genomes could stand for the same one: canonical form changes what is held.

    Raises:
        UserError: a kind is none, or no gene of these kinds has more than one choice.
    """

    def __init__(self, whole: SearchSpace, kinds: Sequence[Kind], bases: Sequence[Genome]) -> None:
        self.whole, self.bases = whole, tuple(bases)
        self.free = [gene.kind in kinds for gene in whole]
        if not any(free and len(gene.choices) > 1 for gene, free in zip(whole, self.free, strict=True)):
            raise UserError(f"evolution.vary={list(kinds)}: no gene of these kinds has more than one choice")
        # What a held gene's one choice is does not matter: layers that differ in held genes alone are alike.
        genes = [
            gene if free else replace(gene, choices=gene.choices[-1:], groups=gene.groups[-1:])
            for gene, free in zip(whole, self.free, strict=True)
        ]
        super().__init__([Gene("base", tuple(range(len(self.bases))), "width"), *genes])
        # Which formats may not fit their rows depends on the widths of all bases.
        self._rows = [(i + 1, tuple(k + 1 for k in widths)) for i, widths in whole._rows]

    def lift(self, genome: Sequence[int]) -> Genome:
        """Return the genome of the whole space that one of this space stands for."""
        rows = zip(genome[1:], self.bases[genome[0]], self.free, strict=True)
        return self.whole.canonical([index if free else base for index, base, free in rows])

    def project(self, genome: Genome) -> Genome:
        """Return the genome of this space nearest to one of the whole: held genes go to the base most like it."""
        indices = [i for i, free in enumerate(self.free) if not free]
        different = [sum(genome[i] != base[i] for i in indices) for base in self.bases]
        return self.canonical([different.index(min(different)), *genome])

    def canonical(self, indices: Sequence[int]) -> Genome:
        """Return the one genome of this space that stands for the same one of the whole space."""
        lifted = zip(self.lift(indices), self.free, strict=True)
        return (indices[0], *(index if free else 0 for index, free in lifted))

    def active(self, genome: Genome) -> list[int]:
        """Return the positions of the genes that have an effect; a held gene has no other choice."""
        return [0, *(i + 1 for i in self.whole.active(self.lift(genome)))]

    def widened(self, preferences: Sequence[Sequence[float]]) -> list[Sequence[float]]:
        """Return preferences among the choices of the whole space's genes as those of this one's."""
        return [[0.0] * len(self.bases), *preferences]


def check_kinds(kinds: Sequence[str] | None, key: str) -> tuple[Kind, ...]:
    """Return kinds of genes as such, in the order of `KINDS`.

    Raises:
        UserError: one is none, or there are none; the message names `key`.
    """
    wanted = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if not wanted or set(wanted) - set(KINDS):
        raise UserError(f"{key} must list some of {', '.join(KINDS)}, got {wanted}")
    return tuple(kind for kind in KINDS if kind in wanted)
