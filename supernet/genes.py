"""Genes, the search space they form, and genomes: points in it. No torch, no model.

A gene is one named decision with choices in ascending cost. A genome is a tuple of choice indices, an
architecture the same decision spelled out as gene name -> value. Everything that searches (operators,
gates, evolution) knows genes and nothing else.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from supernet.errors import UserError

Value = int | str
Genome = tuple[int, ...]
Architecture = dict[str, Value]
Kind = Literal["width", "switch", "format"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NO_FLOOR: Mapping[Kind, float] = {}


@dataclass(frozen=True)
class Gene:
    """One named decision.

    Attributes:
        name: dotted, as `layers.3.mlp.width`.
        choices: values in ascending cost.
        kind: `width` (an extent of a weight), `switch` (0: dropped, 1: kept) or `format`.
        needs: name of a switch without which this gene has no effect.
        row: names of the width genes whose product times `unit` is the length of the rows stored in a format.
        unit: see `row`.
        groups: of each choice, what the length must be a multiple of; the last choice fits any.
    """

    name: str
    choices: tuple[Value, ...]
    kind: Kind
    needs: str | None = None
    row: tuple[str, ...] = ()
    unit: int = 1
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise UserError(f"gene {self.name} needs one or more different choices, got {list(self.choices)}")

    def index(self, value: Value) -> int:
        """Return the index of `value`.

        Raises:
            UserError: the gene does not offer it.
        """
        try:
            return self.choices.index(value)
        except ValueError:
            raise UserError(f"gene {self.name} has no choice {value!r}; it offers {list(self.choices)}") from None


class SearchSpace:
    """An ordered tuple of genes.

    Genomes are always in canonical form: a gene whose switch is off has index 0, and a format that the length of
    its rows does not fit gives way to the next one that does. So two genomes are equal exactly when their subnets are.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        self.genes = tuple(genes)
        self.position = {gene.name: i for i, gene in enumerate(self.genes)}
        if len(self.position) != len(self.genes):
            raise UserError("the genes of a search space must have different names")
        self._needs = [(i, self.position[g.needs]) for i, g in enumerate(self.genes) if g.needs is not None]
        self._rows = [
            (i, tuple(self.position[name] for name in g.row)) for i, g in enumerate(self.genes) if self._may_misfit(g)
        ]

    def _may_misfit(self, gene: Gene) -> bool:
        widths = [self.genes[self.position[name]].choices for name in gene.row]
        lengths = [gene.unit * math.prod(int(w) for w in values) for values in itertools.product(*widths)]
        return any(length % group for length in lengths for group in gene.groups)

    def __len__(self) -> int:
        return len(self.genes)

    def __iter__(self) -> Iterator[Gene]:
        return iter(self.genes)

    @cached_property
    def largest(self) -> Genome:
        """The genome that takes the dearest choice everywhere."""
        return tuple(len(gene.choices) - 1 for gene in self.genes)

    @cached_property
    def smallest(self) -> Genome:
        """The genome that takes the cheapest choice everywhere, every switch on: no layers, no net worth training."""
        return self.canonical([1 if g.kind == "switch" and len(g.choices) > 1 else 0 for g in self.genes])

    @cached_property
    def cheapest(self) -> Genome:
        """The genome that takes the cheapest choice everywhere: whatever can be dropped is."""
        return self.canonical((0,) * len(self.genes))

    @cached_property
    def row_widths(self) -> tuple[int, ...]:
        """Positions of the widths that decide which formats fit."""
        return tuple(sorted({k for _, widths in self._rows for k in widths}))

    @property
    def n_genomes(self) -> int:
        """How many index tuples there are (an upper bound: canonical form merges some)."""
        return math.prod(len(gene.choices) for gene in self.genes)

    @cached_property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the genes of each layer, in the order of the genome; empty without any.

        A layer is the genes whose names have the same one numbered part behind the same parts, such as
        `layers.3.mlp.width` and `layers.3.attention.active`; a name with two numbers belongs to none.
        """
        layers: dict[str, list[int]] = {}
        for i, gene in enumerate(self.genes):
            parts = gene.name.split(".")
            numbered = [k for k, part in enumerate(parts) if part.isdecimal()]
            if len(numbered) == 1:
                layers.setdefault(".".join(parts[: numbered[0] + 1]), []).append(i)
        return tuple(tuple(positions) for positions in layers.values())

    @cached_property
    def alike(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The layers in groups of two or more with the same genes in the same order, whatever their number."""
        groups: dict[object, list[tuple[int, ...]]] = {}
        for layer in self.layers:
            genes = [self.genes[i] for i in layer]
            groups.setdefault(tuple((_unnumbered(g.name), g.kind, g.choices) for g in genes), []).append(layer)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def canonical(self, indices: Sequence[int]) -> Genome:
        """Set every gene whose switch is off to index 0, and raise formats to what fits their rows."""
        genome = list(indices)
        off = self._off(genome)
        for i in off:
            genome[i] = 0
        for i, widths in self._rows:
            if i not in off:
                while not self._fits(genome, i, widths):
                    genome[i] += 1
        return tuple(genome)

    def _off(self, genome: Sequence[int]) -> set[int]:
        """Return the positions of the genes whose switch is off."""
        return {i for i, switch in self._needs if self.genes[switch].choices[genome[switch]] == 0}

    def _fits(self, genome: Sequence[int], i: int, widths: Sequence[int]) -> bool:
        gene = self.genes[i]
        length = gene.unit * math.prod(int(self.genes[k].choices[genome[k]]) for k in widths)
        return length % gene.groups[genome[i]] == 0

    def lowerable(self, genome: Genome) -> list[int]:
        """Return the positions of the genes that have a cheaper choice, see `lowered`."""
        misfits = {i for i, _ in self._rows}
        return [i for i, k in enumerate(genome) if k and (i not in misfits or self.lowered(genome, i) != genome)]

    def lowered(self, genome: Genome, i: int) -> Genome:
        """Return the genome with one gene at the next cheaper choice that is another net; itself where none is."""
        for index in range(genome[i] - 1, -1, -1):
            lower = self.canonical([*genome[:i], index, *genome[i + 1 :]])
            if lower[i] < genome[i]:
                return lower
        return genome

    def active(self, genome: Genome) -> list[int]:
        """Return the positions of the genes that have an effect: those whose switch, if any, is on."""
        off = self._off(genome)
        return [i for i in range(len(self.genes)) if i not in off]

    def sample(self, rng: np.random.Generator, floor: Mapping[Kind, float] = NO_FLOOR) -> Genome:
        """Draw a genome, genes uniform and independent; `floor`: kind -> share of its cheapest choices left out."""
        sizes = [(len(g.choices), floor.get(g.kind, 0.0)) for g in self.genes]
        return self.canonical([int(rng.integers(min(n - 1, int(share * n)), n)) for n, share in sizes])

    def sample_spread(self, rng: np.random.Generator, floor: Mapping[Kind, float] = NO_FLOOR) -> Genome:
        """Draw a genome whose mean level is uniform: the level of each kind first, then genes around it.

        Independent draws have a mean that hardly varies with many genes, so extreme budgets would never be seen
        (LLM-QFA, arXiv 2405.20202, section 3.3). `floor`: kind -> least mean level.
        """
        level = {kind: (low := floor.get(kind, 0.0)) + (1 - low) * rng.random() for kind in KINDS}
        indices = []
        for gene in self.genes:
            n = len(gene.choices)
            if gene.kind == "switch":
                indices.append(n - 1 if rng.random() < level["switch"] else 0)
            else:
                position = level[gene.kind] + 0.25 * rng.standard_normal()
                indices.append(int(np.clip(position * n, 0, n - 1)))
        return self.canonical(indices)

    def replace(self, genome: Genome, change: Callable[[Gene, int], int]) -> Genome:
        """Return the genome with `change(gene, index)` as every gene's index."""
        return self.canonical([change(gene, index) for gene, index in zip(self.genes, genome, strict=True)])

    def above(self, lowest: Callable[[Gene], int]) -> "SearchSpace":
        """Return the space without the choices of each gene that are cheaper than `lowest(gene)`, an index."""
        return SearchSpace([replace(g, choices=g.choices[(k := lowest(g)) :], groups=g.groups[k:]) for g in self.genes])

    def with_format(self, genome: Genome, name: str) -> Genome:
        """Return the genome with every format gene that has a choice set to the format `name`.

        Raises:
            UserError: such a gene does not offer it.
        """
        return self.replace(genome, lambda gene, index: gene.index(name) if gene in self._formats else index)

    @cached_property
    def _formats(self) -> tuple[Gene, ...]:
        return tuple(gene for gene in self.genes if gene.kind == "format" and len(gene.choices) > 1)

    @property
    def uniform_formats(self) -> tuple[str, ...]:
        """The formats that every format gene with a choice offers, in ascending cost."""
        names = self._formats[0].choices if self._formats else ()
        return tuple(str(name) for name in names if all(name in gene.choices for gene in self._formats))

    def decode(self, genome: Genome) -> Architecture:
        """Return the architecture of a genome."""
        return {gene.name: gene.choices[index] for gene, index in zip(self.genes, genome, strict=True)}

    def baselines(self) -> list[tuple[str, Genome]]:
        """Return (name, genome) of what anyone would try first: the uniform formats and both ends."""
        named = [("largest", self.largest)]
        for name in reversed(self.uniform_formats):
            genome = self.with_format(self.largest, name)
            if genome == self.largest:
                named[0] = (f"largest {name}", genome)
            else:
                named.append((f"uniform {name}", genome))
        return [*named, ("smallest", self.smallest)]

    def full_precision(self, genome: Genome) -> Architecture:
        """Return the architecture of a genome with F32 in place of every format: the structure, unrounded."""
        choices = self.decode(genome)
        return {g.name: "F32" if g.kind == "format" else choices[g.name] for g in self.genes}

    def encode(self, architecture: Mapping[str, Value]) -> Genome:
        """Return the genome of an architecture.

        Raises:
            UserError: a gene is missing or unknown, or a value is not among its choices.
        """
        wrong = set(architecture) ^ set(self.position)
        if wrong:
            raise UserError(f"the architecture and the search space differ in these genes: {sorted(wrong)[:5]}")
        return self.canonical([gene.index(architecture[gene.name]) for gene in self.genes])

    def check(self, indices: Sequence[int]) -> Genome:
        """Return `indices` as a genome.

        Raises:
            UserError: it has another length, an index out of range, or is not in canonical form.
        """
        genome = tuple(indices)
        fits = len(genome) == len(self.genes) and all(
            isinstance(i, int) and 0 <= i < len(g.choices) for i, g in zip(genome, self.genes, strict=True)
        )
        if not fits or self.canonical(genome) != genome:
            raise UserError(f"{list(genome)} is not a genome of this search space")
        return genome

    def to_json(self) -> list[dict[str, Any]]:
        """Return the genes as plain JSON values."""
        return [asdict(gene) for gene in self.genes]

    @classmethod
    def from_json(cls, genes: Sequence[Mapping[str, Any]]) -> "SearchSpace":
        """Rebuild a space that `to_json` wrote.

        Raises:
            UserError: it does not hold genes.
        """
        try:
            return cls([_gene(g) for g in genes])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the search space is damaged: {error!r}") from None


def _gene(content: Mapping[str, Any]) -> Gene:
    """Rebuild a gene; files from before there were rows have none."""
    sizes = {key: tuple(content.get(key, ())) for key in ("row", "groups")}
    choices, unit = tuple(content["choices"]), content.get("unit", 1)
    return Gene(content["name"], choices, content["kind"], content["needs"], unit=unit, **sizes)


def _unnumbered(name: str) -> str:
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))
