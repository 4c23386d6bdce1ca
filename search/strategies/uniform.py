"""One format for all weights of the largest net."""

from search.candidate import Lineage, Proposal
from search.strategies.listed import Listed


class Uniform(Listed):
    """Asks for the largest net in each of the formats that all its weights can have: quantization without a search."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        named = {genome: name for name, genome in reversed(self.whole.baselines()) if name != "smallest"}
        first = [Proposal(genome, Lineage(0, name, seed=self.seed)) for genome, name in reversed(named.items())]
        self.first = self._held(first)
