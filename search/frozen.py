"""The supernet as candidates are scored with it: rounded once, sliced for each.

Quantization groups run along the in-dimension and widths are multiples of the group, so slicing a quantized
weight equals quantizing the slice: each weight is quantized once per format, and a candidate only slices.
"""

import copy
from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from supernet.elastic import Block, Choice, ElasticLinear, Extent, Linear, under
from supernet.formats import F32, format_named
from supernet.genes import Architecture
from supernet.model import Supernet


class FrozenElasticLinear(ElasticLinear):
    """An elastic projection that is rounded to each format once, when it is first asked for; it hands out views.

    F16 is there whatever the genes offer: quantization is judged against it.
    """

    def __init__(self, trained: ElasticLinear) -> None:
        torch.nn.Module.__init__(self)
        self.n_out_axes, self.formats = trained.n_out_axes, trained.formats
        self.weight = trained.weight
        self.rounded: dict[str, Tensor] = {}

    def effective(self, out: Sequence[Extent], in_: Sequence[Extent], choice: Choice) -> Tensor:
        """Return a prefix of the rounded weight; hard choices only."""
        name = str(choice)
        if name not in self.rounded:
            matrix = self.weight.detach().flatten(self.n_out_axes).flatten(0, self.n_out_axes - 1)
            self.rounded[name] = format_named(name).quantize(matrix).reshape(self.weight.shape)
        return self._matrix((*out, *in_), self.rounded[name])

    def extract(self, out: Sequence[int], in_: Sequence[int], weight_format: str) -> Linear:
        """Return a projection that views a prefix of the rounded weight and rounds no more."""
        return Linear(self.effective(out, in_, weight_format), F32())


def frozen(supernet: Supernet, device: torch.device) -> Supernet:
    """Return a copy of the supernet on `device` whose weights are rounded once per format, when first needed.

    Takes up to (number of formats) x the supernet's float32 bytes on top of the supernet itself.
    """
    result = copy.deepcopy(supernet).to(device).eval().requires_grad_(False)
    for module in list(result.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ElasticLinear):
                setattr(module, name, FrozenElasticLinear(child))
    return result


class Network:
    """An architecture under the frozen supernet, block by block; blocks are extracted when they are used.

    Attributes:
        path: for each number of kept blocks, from 0, what decides the residual stream behind them.
    """

    def __init__(self, supernet: Supernet, architecture: Architecture) -> None:
        self.supernet, self.width = supernet, int(architecture["d_model"])
        self.embedding_format = str(architecture["embedding.format"])
        kept = [(i, block, under(architecture, prefix)) for i, (prefix, block) in enumerate(supernet.blocks())]
        self.blocks = [(block, local) for _, block, local in kept if local["active"]]
        steps = [(i, *local.values()) for i, _, local in kept if local["active"]]
        self.path: list[Hashable] = [(self.width, self.embedding_format, *steps[:n]) for n in range(len(steps) + 1)]
        self._extracted: dict[int, Block] = {}

    @cached_property
    def embedding(self) -> Tensor:
        """The embedding (vocab, d_model)."""
        return self.supernet.embedding.effective((self.supernet.vocab_size,), (self.width,), self.embedding_format)

    def block(self, number: int) -> Block:
        """Return a kept block."""
        if number not in self._extracted:
            block, local = self.blocks[number]
            self._extracted[number] = block.extract(local, self.width)
        return self._extracted[number]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the residual stream behind the last block."""
        return F.linear(self.supernet.norm(x, self.width), self.embedding)
