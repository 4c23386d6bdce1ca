"""Bytes of all tensors as shipped."""

from search.evaluation import Evaluation
from search.objectives import Objective


class Size(Objective):
    """Size in MB (10^6 bytes) of all tensors of the GGUF file."""

    name = "size_mb"
    cheap = True

    def score(self, evaluation: Evaluation) -> float:
        """Return the size."""
        return evaluation.size_mb
