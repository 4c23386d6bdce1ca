"""Cheap scores with inherited weights.

Quantization groups run along the in-dimension and widths are multiples of the group, so slicing a
quantized weight equals quantizing the slice: each weight is quantized once per format, and a candidate
only slices.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from supernet.elastic import Choice, ElasticLinear, Extent, Linear
from supernet.formats import F32, MB
from supernet.genes import Architecture, Genome
from supernet.losses import evaluate
from supernet.model import Supernet
from supernet.subnet import extract


class FrozenElasticLinear(ElasticLinear):
    """An elastic projection that has been rounded to each of its formats; it hands out views."""

    def __init__(self, trained: ElasticLinear) -> None:
        torch.nn.Module.__init__(self)
        self.n_out_axes, self.formats = trained.n_out_axes, trained.formats
        self.weight = trained.weight
        matrix = trained.weight.detach().flatten(trained.n_out_axes).flatten(0, trained.n_out_axes - 1)
        shape = trained.weight.shape
        self.rounded = {f.name: f.quantize(matrix).reshape(shape) for f in trained.formats}

    def effective(self, out: Sequence[Extent], in_: Sequence[Extent], choice: Choice) -> Tensor:
        """Return a prefix of the rounded weight; hard choices only."""
        return self._matrix((*out, *in_), self.rounded[str(choice)])

    def extract(self, out: Sequence[int], in_: Sequence[int], weight_format: str) -> Linear:
        """Return a projection that views a prefix of the rounded weight and rounds no more."""
        return Linear(self.effective(out, in_, weight_format), F32())


def frozen(supernet: Supernet, device: torch.device) -> Supernet:
    """Return a copy of the supernet on `device` with every weight rounded once per format.

    Takes (number of formats) x the supernet's float32 bytes on top of the supernet itself.
    """
    result = copy.deepcopy(supernet).to(device).eval().requires_grad_(False)
    for module in list(result.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ElasticLinear):
                setattr(module, name, FrozenElasticLinear(child))
    return result


class Evaluator:
    """Scores genomes on fixed token rows.

    Args:
        supernet: trained.
        rows: token ids (n, tokens + 1) of the search split; networks are scored on their device.
        batch_size: rows at a time.
    """

    def __init__(self, supernet: Supernet, rows: Tensor, batch_size: int) -> None:
        self.supernet, self.rows, self.batch_size = frozen(supernet, rows.device), rows, batch_size

    def evaluation(self, genome: Genome) -> "Evaluation":
        """Return the evaluation of a genome; what it costs is paid when a score is read."""
        return Evaluation(self, genome)


class Evaluation:
    """One genome under evaluation: objectives read what they need, each thing is computed once."""

    def __init__(self, evaluator: Evaluator, genome: Genome) -> None:
        self.evaluator, self.genome = evaluator, genome

    @cached_property
    def architecture(self) -> Architecture:
        """The decoded genome."""
        return self.evaluator.supernet.space.decode(self.genome)

    @cached_property
    def size_mb(self) -> float:
        """Bytes of all tensors as shipped, in MB."""
        return float(self.evaluator.supernet.n_bytes(self.architecture)) / MB

    @cached_property
    def quality(self) -> tuple[float, float]:
        """Next-token loss in nats, and accuracy, with inherited weights."""
        with torch.inference_mode():
            network = extract(self.evaluator.supernet, self.genome)
            return evaluate(network, self.evaluator.rows, self.evaluator.batch_size)
