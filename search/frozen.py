"""The supernet as candidates are scored with it: rounded once, sliced for each.

Quantization groups run along the in-dimension and a row's width is a multiple of the group, so slicing a quantized
weight equals quantizing the slice: each weight is quantized once per format, and a candidate only slices.
"""

import copy
import math
from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from supernet.elastic import ElasticLinear, Extent, quantized_prefix, under
from supernet.formats import F32
from supernet.genes import Architecture
from supernet.inventory import Choice
from supernet.model import OUTPUT, Supernet
from supernet.plain import Block, Linear, Matrix


class FrozenElasticLinear(ElasticLinear):
    """An elastic projection that is rounded to each format once, when it is first asked for; it hands out views.

    F16 is there whatever the genes offer: quantization is judged against it.
    """

    def __init__(self, trained: ElasticLinear) -> None:
        torch.nn.Module.__init__(self)
        self.n_out_axes, self.formats, self.emulated = trained.n_out_axes, trained.formats, trained.emulated
        self.weight, self.log_factors = trained.weight, trained.log_factors
        self.rounded: dict[Hashable, Tensor] = {}

    def effective(self, out: Sequence[Extent], in_: Sequence[Extent], choice: Choice) -> Matrix:
        """Return a prefix of the rounded weight; hard choices only."""
        name, n_out = str(choice), self.weight.shape[: self.n_out_axes]
        # A prefix of inner in-axes makes other groups of a row: such rows are rounded by themselves.
        cut: tuple[Extent, ...] = tuple(in_) if len(in_) > 1 else tuple(self.weight.shape[self.n_out_axes :])
        if (name, cut) not in self.rounded:
            whole = (*n_out, *cut)
            matrix, learned = self.matrix(whole, self.weight.detach()), self.learned(whole, name)
            factors = None if learned is None else learned.detach().exp()
            # What no multiple of the group holds, no choice in this format asks for.
            self.rounded[name, cut] = quantized_prefix(self.format(name), matrix, factors).reshape(*n_out, -1)
        weight = self.rounded[name, cut]
        for axis, size in enumerate((*out, math.prod(int(size) for size in in_))):
            weight = weight.narrow(axis, 0, int(size))
        activations = self.format(name).activations if self.emulated else F32.name
        return Matrix(weight.reshape(-1, weight.shape[-1]), activations)

    def extract(self, out: Sequence[int], in_: Sequence[int], name: str) -> Linear:
        """Return a projection that views a prefix of the rounded weight and rounds no more."""
        weight, _ = self.effective(out, in_, name)
        linear = Linear(weight, F32())
        linear.activations, linear.emulated = self.format(name).activations, self.emulated
        return linear


def frozen(supernet: Supernet, device: torch.device) -> Supernet:
    """Return a copy of the supernet on `device` whose weights are rounded once per format, when first needed.

    Takes (number of formats) x the supernet's float32 bytes on top of the supernet itself, and more where heads are
    cut: their output projection is rounded for each number of heads.
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
        key: what decides the logits.
    """

    def __init__(self, supernet: Supernet, architecture: Architecture) -> None:
        self.supernet, self.width = supernet, int(architecture["d_model"])
        self.embedding_format = str(architecture["embedding.format"])
        kept = [(i, block, under(architecture, prefix)) for i, (prefix, block) in enumerate(supernet.blocks())]
        self.blocks = [(block, local) for _, block, local in kept if local["active"]]
        steps = [(i, *local.values()) for i, _, local in kept if local["active"]]
        self.path: list[Hashable] = [(self.width, self.embedding_format, *steps[:n]) for n in range(len(steps) + 1)]
        self.output_format = str(architecture[OUTPUT]) if supernet.output is not None else None
        self.key: Hashable = self.path[-1] if self.output_format is None else (self.path[-1], self.output_format)
        self._extracted: dict[int, Block] = {}

    @property
    def shared(self) -> list[Hashable]:
        """The part of the path where other networks can have the same stream.

        Behind no block it is a mere lookup, and behind the last one only networks with another output format share it.
        """
        return self.path[1:-1] if self.output_format is None else self.path[1:]

    @cached_property
    def embedding(self) -> Matrix:
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
        return self._head(self.supernet.norm(x, self.width))

    @cached_property
    def _head(self) -> Matrix:
        output = self.supernet.output
        if output is None or self.output_format is None:
            return self.embedding
        return output.effective((self.supernet.vocab_size,), (self.width,), self.output_format)
