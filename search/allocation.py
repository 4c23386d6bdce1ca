"""Which choice each gene takes under a budget, if what they cost in loss adds up: an integer linear program.

The recipe of AutoQuantize in NVIDIA's ModelOpt, which spreads formats over layers by their sensitivities, for
every kind of gene. The unit that is added up is a block: a switch and the genes that need it, in all their
combinations; a format outside of any block is one too. A width outside of any, such as the model's own, changes
what all others cost: the program is solved for each of its choices. No torch, no model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from supernet.genes import KINDS, Genome, Kind, SearchSpace

Costs = Callable[[Genome], Mapping[str, float]]
Rises = Mapping[str, Sequence[float | None]]  # gene name -> what each choice costs, nats; None: not known
Array = np.ndarray[Any, np.dtype[np.float64]]

TIGHTENED = 10  # times that a budget is lowered because costs did not quite add up
UNITS = {
    "size_mb": "MB",
    "decode_ms": "ms",
    "decode_p95_ms": "ms p95",
    "ttft_ms": "ms TTFT",
    "peak_memory_mb": "MB RAM",
}


@dataclass(frozen=True)
class _Option:
    """One combination of a block: the indices it sets, the rise of the loss, what it adds to the base's costs."""

    indices: Mapping[int, int]
    rise: float
    costs: Array


@dataclass(frozen=True)
class _Program:
    """What is to be solved for one choice of the widths outside of blocks."""

    base: Genome
    rise: float
    costs: Array
    blocks: Sequence[Sequence[_Option]]


class Allocation:
    """Chooses genomes for budgets; options and their costs are enumerated once.

    Args:
        space: the genes.
        rises: what each choice of a gene alone costs the largest net, in nats: its divergence, or the rise of the
            loss. Where a cheaper choice seems to be better than a dearer one, that is taken for luck: it counts as
            no better.
        costs: a genome's costs by name; they should be nearly sums over blocks.
        vary: kinds of genes that may change: `("format",)` is AutoQuantize proper.
        base: the genome that all else is taken from, by default the largest.
    """

    def __init__(
        self,
        space: SearchSpace,
        rises: Rises,
        costs: Costs,
        vary: Collection[Kind] = KINDS,
        base: Genome | None = None,
    ) -> None:
        self.space, self.costs = space, costs
        self.rises = {name: _ascending(each) for name, each in rises.items()}
        self.names = tuple(costs(space.largest))
        base = space.largest if base is None else base
        varied = [gene.kind in vary for gene in space]
        self.smallest = space.canonical([s if v else b for s, b, v in zip(space.smallest, base, varied, strict=True)])
        free = [i for i, gene in enumerate(space) if gene.kind in vary and len(gene.choices) > 1]
        outer = [i for i in free if space.genes[i].kind == "width" and space.genes[i].needs is None]
        blocks: dict[str, list[int]] = {}
        for i in free:
            if i not in outer:
                blocks.setdefault(space.genes[i].needs or space.genes[i].name, []).append(i)
        programs = (self._program(base, outer, values, blocks.values()) for values in self._combinations(outer))
        self._programs = [program for program in programs if program is not None]

    def _combinations(self, genes: Sequence[int]) -> Any:
        return product(*(range(len(self.space.genes[i].choices)) for i in genes))

    def _cost(self, genome: Genome) -> Array:
        costs = self.costs(genome)
        return np.array([costs[name] for name in self.names])

    def _program(
        self, base: Genome, outer: Sequence[int], values: Sequence[int], blocks: Collection[Sequence[int]]
    ) -> _Program | None:
        rise = self._rise(dict(zip(outer, values, strict=True)))
        if rise is None:
            return None
        base = self._changed(base, dict(zip(outer, values, strict=True)))
        costs = self._cost(base)
        options = [self._options(base, costs, block) for block in blocks]
        return _Program(base, rise, costs, [each for each in options if each])

    def _options(self, base: Genome, costs: Array, block: Sequence[int]) -> list[_Option]:
        found: dict[tuple[int, ...], _Option] = {}
        for values in self._combinations(block):
            genome = self._changed(base, dict(zip(block, values, strict=True)))
            indices = {i: genome[i] for i in block}  # in canonical form, which may be that of another combination
            key = tuple(indices.values())
            rise = self._rise(indices)
            if key not in found and rise is not None:
                found[key] = _Option(indices, rise, self._cost(genome) - costs)
        return list(found.values())

    def _rise(self, indices: Mapping[int, int]) -> float | None:
        """Return the rise of some genes' choices together: their sum, of a dropped block that of its switch."""
        genes = self.space.genes
        off = {genes[i].name for i, k in indices.items() if genes[i].kind == "switch" and genes[i].choices[k] == 0}
        parts = [self.rises[genes[i].name][k] for i, k in indices.items() if genes[i].needs not in off]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _changed(self, genome: Genome, indices: Mapping[int, int]) -> Genome:
        return self.space.canonical([indices.get(i, index) for i, index in enumerate(genome)])

    def solve(self, budgets: Mapping[str, float]) -> Genome | None:
        """Return the genome of least summed rise whose costs are within the budgets; None if there is none.

        Args:
            budgets: bounds by names of costs.
        """
        rows = [self.names.index(name) for name in budgets]
        bounds = np.array([budgets[name] for name in budgets], dtype=float)
        solved = [self._solve(program, rows, bounds) for program in self._programs]
        best = min((each for each in solved if each is not None), key=lambda each: each[0], default=None)
        return best[1] if best is not None else None

    def _solve(self, program: _Program, rows: Sequence[int], bounds: Array) -> tuple[float, Genome] | None:
        """Return (rise, genome) for one choice of the outer widths."""
        aim = bounds - program.costs[rows]
        for _ in range(TIGHTENED):
            chosen = _choose(program.blocks, rows, aim)
            if chosen is None:
                return None
            indices = {i: k for option in chosen for i, k in option.indices.items()}
            genome = self._changed(program.base, indices)
            excess = self._cost(genome)[rows] - bounds
            if (excess <= 0).all():
                return program.rise + sum(option.rise for option in chosen), genome
            aim = aim - np.maximum(excess, 0)  # what holds between blocks, such as stand-ins, is no sum
        return None


def _ascending(rises: Sequence[float | None]) -> list[float | None]:
    """Return the rises, none below 0 or below that of a dearer choice."""
    found: list[float | None] = []
    highest = 0.0
    for rise in reversed(rises):
        highest = max(highest, rise or 0.0)
        found.append(None if rise is None else highest)
    return found[::-1]


def _choose(blocks: Sequence[Sequence[_Option]], rows: Sequence[int], aim: Array) -> list[_Option] | None:
    """Return one option a block, of least summed rise and with summed costs within `aim`; None if none is."""
    from scipy.optimize import LinearConstraint, milp

    kept = [_not_dominated(options, rows) for options in blocks]
    options = [option for each in kept for option in each]
    if not options:
        return [] if (aim >= 0).all() else None
    costs = np.array([option.costs[rows] for option in options]).T
    scale = np.maximum(np.abs(costs).max(1), 1e-12)  # tolerances of the solver are absolute
    one_each = np.zeros((len(kept), len(options)))
    first = 0
    for block, each in enumerate(kept):
        one_each[block, first : first + len(each)] = 1
        first += len(each)
    rises = np.array([option.rise for option in options])
    solution = milp(
        rises / max(float(np.abs(rises).max()), 1e-12),
        integrality=np.ones(len(options)),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(costs / scale[:, None], ub=aim / scale),
            LinearConstraint(one_each, lb=1, ub=1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return None
    return [option for option, taken in zip(options, solution.x, strict=True) if taken > 0.5]


def _not_dominated(options: Sequence[_Option], rows: Sequence[int]) -> list[_Option]:
    """Return the options that no other of the block beats in rise and costs; of equal ones the first."""
    points = np.array([[option.rise, *option.costs[rows]] for option in options])
    kept = []
    for i, point in enumerate(points):
        as_good = (points <= point).all(1)
        better = as_good & (points < point).any(1)
        if not better.any() and not as_good[:i].any():
            kept.append(options[i])
    return kept


def allocate(
    space: SearchSpace,
    rises: Rises,
    cost: Callable[[Genome], float],
    budget: float,
    vary: Collection[Kind] = KINDS,
    base: Genome | None = None,
) -> Genome | None:
    """Return the genome of least summed rise that costs `budget` at most; None if there is none.

    Args:
        space: the genes.
        rises: what each choice of a gene alone costs the largest net, in nats.
        cost: of a genome, nearly a sum over blocks; its unit is that of the budget.
        budget: bound on the cost.
        vary: kinds of genes that may change.
        base: the genome that all else is taken from, by default the largest.
    """
    return Allocation(space, rises, lambda genome: {"": cost(genome)}, vary, base).solve({"": budget})


def seeds(
    allocation: Allocation, budgets: Mapping[str, float], least: float, n: int, unit: str = "size_mb"
) -> list[tuple[str, Genome]]:
    """Return (label, genome) for up to `n` budgets, the largest first.

    Args:
        allocation: what chooses.
        budgets: bounds by names of costs; the others are shares of them, down to `least`. Without any, budgets
            are spread between what the largest and the smallest net that it may choose cost in `unit`.
        least: share of the budgets below which nothing is gained, from 0 to 1.
        n: how many.
        unit: name of a cost.
    """
    costs, space = allocation.costs, allocation.space
    if budgets:
        cheapest = costs(allocation.smallest)
        reached = [cheapest[name] / bound for name, bound in budgets.items() if bound]
        shares = np.geomspace(1.0, min(1.0, max(least, 1e-3, *reached)), n)
    else:
        budgets = {unit: costs(space.largest)[unit]}
        shares = np.geomspace(1.0, costs(allocation.smallest)[unit] / budgets[unit], n + 2)[
            1:-1
        ]  # the ends are baselines
    return solutions(allocation, [{name: float(share) * b for name, b in budgets.items()} for share in shares])


def solutions(allocation: Allocation, budgets: Sequence[Mapping[str, float]]) -> list[tuple[str, Genome]]:
    """Return (label, genome) for each of some budgets that can be met, bounds by names of costs; equals once."""
    found: dict[Genome, str] = {}
    for bounds in budgets:
        genome = allocation.solve(bounds)
        if genome is not None:
            label = ", ".join(f"{b:.3g} {UNITS.get(name.partition('@')[0], name)}" for name, b in bounds.items())
            found.setdefault(genome, f"sensitivity LP {label}")
    return [(label, genome) for genome, label in found.items()]


def preferences(space: SearchSpace, rises: Rises, saved: Mapping[str, Sequence[float]]) -> list[list[float]]:
    """Return for every choice of every gene how far it is to be preferred, about -3 to 3; 0 for the dearest.

    A choice is worth what it saves, at the going rate, less what it costs in loss. The rate is the median over
    all choices: half of them are a bargain. What is not known is 0.

    Args:
        space: the genes.
        rises: what each choice costs, in nats.
        saved: bytes by choice.
    """
    pairs = [
        (rise, saving)
        for gene in space
        for rise, saving in zip(rises[gene.name], saved[gene.name], strict=True)
        if rise is not None and saving > 0
    ]
    if not pairs:
        return [[0.0] * len(gene.choices) for gene in space]
    rate = float(np.median([rise / saving for rise, saving in pairs]))
    scale = float(np.median([abs(rate * saving - rise) for rise, saving in pairs])) or 1.0
    return [
        [
            0.0 if rise is None else float(np.clip((rate * saving - rise) / scale, -3, 3))
            for rise, saving in zip(rises[gene.name], saved[gene.name], strict=True)
        ]
        for gene in space
    ]
