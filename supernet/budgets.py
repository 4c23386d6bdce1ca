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


def cheapest_genome(space: SearchSpace, cost: Callable[[Genome], float], positions: Sequence[int]) -> Genome:
    """Return the genome of least cost: `cheapest`, unless another choice of some genes takes less.

    Args:
        space: the genes.
        cost: of a genome.
        positions: of the genes that are changed, one at a time while that gains. Bytes need the row widths alone:
            wider rows may fit a format that takes less. The quickest format need not be the smallest.
    """
    indices = [0] * len(space)
    found, least = space.cheapest, cost(space.cheapest)
    gained = True
    while gained:
        gained = False
        for position in positions:
            for choice in range(len(space.genes[position].choices)):
                changed = [*indices[:position], choice, *indices[position + 1 :]]
                genome = space.canonical(changed)
                if (tried := cost(genome)) < least:
                    indices, found, least, gained = changed, genome, tried, True
    return found


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
    ends = [genome for end in (space.cheapest, space.largest) for genome in (end, *in_every_format(space, end))]
    for budget in budgets:

        def cost(genome: Genome, budget: Budget = budget) -> float:
            return float(budget.cost(space.decode(genome)))

        least = cheapest_genome(space, cost, space.row_widths if budget.unit == "MB" else range(len(space)))
        costs = [cost(genome) for genome in (least, *ends)]
        if not min(costs) <= budget.bound <= max(costs):
            key, what = ("budgets_mb", "") if budget.unit == "MB" else ("budgets_ms", " for a token")
            reach = f"{rounded_up(min(costs)):g} to {max(costs):.3f} {budget.unit}{what}"
            raise UserError(f"gates.{key}: {budget.bound} {budget.unit} cannot be met; subnets take {reach}")
    return budgets
