"""What a search can reach: budgets that no subnet meets are refused.

That on the size at once, those on a target's costs as soon as its hardware is measured.
"""

from collections.abc import Sequence

from search.evolution import Evolution
from search.scoring import Scorer
from supernet.budgets import cheapest_genome, rounded_up
from supernet.errors import UserError
from supernet.formats import MB
from supernet.genes import Genome

SIZE = "size_mb"


def check_sizes(scorer: Scorer, strategy: Evolution, finalist_sizes_mb: Sequence[float]) -> None:
    """Refuse sizes below the smallest subnet that the strategy may propose.

    Raises:
        UserError: the budget is below it, or all sizes that finalists are asked for are.
    """
    supernet = scorer.trained.supernet

    def size_mb(genome: Genome) -> float:
        return float(supernet.n_bytes(supernet.space.decode(strategy.lift(genome)))) / MB

    least = size_mb(cheapest_genome(strategy.space, size_mb, strategy.space.row_widths))
    limits = {f"budget.{SIZE}": scorer.budget[SIZE]} if SIZE in scorer.budget else {}
    limits |= {"finalist_sizes_mb": max(finalist_sizes_mb)} if finalist_sizes_mb else {}
    for key, limit in limits.items():
        if limit < least:
            raise UserError(
                f"{key}={limit:g}: no subnet is so small; the smallest reachable is {rounded_up(least):g} MB"
            )


def check_costs(scorer: Scorer, strategy: Evolution) -> None:
    """Refuse budgets on what targets predict where no target has a subnet for each of them; models must be fitted.

    Raises:
        UserError: no subnet meets one of the budgets by itself, on any target.
    """
    missed, asked = [], dict[str, float]()
    for target in scorer.targets:
        bounds = {score: bound for score, bound in scorer.bounds(target).items() if score in scorer.known_names}
        least = {score: _least(strategy, score) for score in bounds.keys() - {SIZE}}
        beyond = [f"{score}={rounded_up(least[score]):g}" for score in sorted(least) if least[score] > bounds[score]]
        if not beyond:
            return
        asked |= {score: bounds[score] for score in sorted(least) if least[score] > bounds[score]}
        missed.append(f"the least that a subnet takes on {target} is {', '.join(beyond)}")
    said = dict.fromkeys(f"budget.{score.partition('@')[0]}={bound:g}" for score, bound in asked.items())
    raise UserError(f"{', '.join(said)} cannot be met: {'; '.join(missed)}")


def _least(strategy: Evolution, score: str) -> float:
    """Return the least cost that changing every gene, one at a time, finds; what is quickest need not be smallest."""

    def cost(genome: Genome) -> float:
        return strategy.known(genome)[score]

    return cost(cheapest_genome(strategy.space, cost, range(len(strategy.space))))
