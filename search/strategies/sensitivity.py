"""What a linear program over the sensitivity of each gene finds, without a search."""

import numpy as np

from search.candidate import Proposal
from search.strategies.listed import Listed
from supernet.errors import UserError

OPERATOR = "sensitivity"  # how the operator begins of whatever the linear program found


class Sensitivity(Listed):
    """Asks for the linear program's solutions in the first population, one for each of a spread of budgets.

    With `vary: [format]` this is mixed precision by additive sensitivities, as AutoQuantize of NVIDIA's Model
    Optimizer has it: the structure stays that of the largest net.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.first = [p for p in self.first if p.lineage.operator.startswith(OPERATOR)]

    def ask(self, n: int, rng: np.random.Generator) -> list[Proposal]:
        """Return the next `n` solutions; none at the end.

        Raises:
            UserError: the first population holds none at all.
        """
        if not self.first:
            raise UserError("evolution=sensitivity: the linear program found no net within the budget")
        return super().ask(n, rng)
