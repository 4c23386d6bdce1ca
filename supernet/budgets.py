"""What gates and searches may be held to: budgets, and what the space can reach."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from supernet.errors import UserError
from supernet.formats import MB
from supernet.genes import Genome, SearchSpace
from supernet.hardware import HardwareModel, in_every_format
from supernet.inventory import Choices
from supernet.model import Supernet


@dataclass(frozen=True)
class Budget:
    """What the expected cost of a set of gates is held to.

    Attributes:
        bound: on the cost, in `unit`.
        unit: MB (as shipped) or ms (a token, as a hardware model predicts).
        cost: of hard choices, or the differentiable expectation under soft ones.
    """

    bound: float
    unit: str
    cost: Callable[[Choices], Any]

    def __str__(self) -> str:
        return f"{self.bound:g} {self.unit}"


def rounded_up(value: float) -> float:
    """Return a cost in three digits or more, not below what it is: as a budget it has to reach."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return math.ceil(round(value * 10**digits, 6)) / 10**digits


def cheapest_genome(space: SearchSpace, cost: Callable[[Genome], float]) -> Genome:
    """Return the genome of least cost: `cheapest`, unless wider rows fit a format that takes less.

    Widths that formats depend on are changed one at a time, while that gains.
    """
    indices = [0] * len(space)
    found = space.canonical(indices)
    while True:
        tried = [
            [*indices[:k], i, *indices[k + 1 :]] for k in space.row_widths for i in range(len(space.genes[k].choices))
        ]
        best = min(tried, key=lambda changed: cost(space.canonical(changed)), default=indices)
        if cost(space.canonical(best)) >= cost(found):
            return found
        indices, found = best, space.canonical(best)


def check_budgets(
    space: SearchSpace,
    supernet: Supernet,
    budgets_mb: Sequence[float],
    budgets_ms: Sequence[float] = (),
    model: HardwareModel | None = None,
) -> list[Budget]:
    """Return the budgets, those on bytes first.

    Args:
        space: the genes.
        supernet: whose subnets they are on.
        budgets_mb: on the size, in MB.
        budgets_ms: on the time for a token, in ms.
        model: predicts that time.

    Raises:
        UserError: a budget lies outside what the space can reach, or is on a time that no model predicts.
    """
    if budgets_ms and (model is None or "decode_ms" not in model.coefficients):
        raise UserError("gates.budgets_ms needs gates.hardware, the path of a hardware.json that predicts decode_ms")

    def size(choices: Choices) -> Any:
        return supernet.n_bytes(choices) / MB

    def latency(choices: Choices) -> Any:
        assert model is not None
        return model.predict(supernet.inventory(choices))["decode_ms"]

    budgets = [Budget(bound, "MB", size) for bound in budgets_mb]
    budgets += [Budget(bound, "ms", latency) for bound in budgets_ms]
    # The format that takes the fewest bits need not be the quickest.
    smallest = cheapest_genome(space, lambda genome: float(supernet.n_bytes(space.decode(genome))))
    ends = (smallest, space.cheapest, space.largest)  # narrower rows may take more bytes and less time
    genomes = [genome for end in ends for genome in (end, *in_every_format(space, end))]
    architectures = [space.decode(genome) for genome in genomes]
    for budget in budgets:
        costs = [budget.cost(architecture) for architecture in architectures]
        if not min(costs) <= budget.bound <= max(costs):
            key, what = ("budgets_mb", "") if budget.unit == "MB" else ("budgets_ms", " for a token")
            reach = f"{rounded_up(min(costs)):g} to {max(costs):.3f} {budget.unit}{what}"
            raise UserError(f"gates.{key}: {budget.bound} {budget.unit} cannot be met; subnets take {reach}")
    return budgets
