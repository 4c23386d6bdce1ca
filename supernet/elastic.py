"""Weights shared by all their choices: slice for a hard choice, mix for a soft one.

A *choice* is either hard, a gene's value, or soft, a probability for each of its values. A hard width
slices, so a small subnet is really cheaper. A soft width becomes a mask with entry i = P(width > i), a
soft format mixes the quantized weights, sum_k p_k Q_k(W), so the relaxed net costs one forward pass
however many choices there are (EdMIPS, arXiv 2004.05795; TangleNAS, arXiv 2312.10440). A soft choice
that is one-hot computes what the hard choice computes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.formats import WeightFormat, format_named
from supernet.genes import Gene, Value

Choice = Value | Tensor
Choices = Mapping[str, Choice]
# Feature -> (expected) count. `Q4_0.weights`, `Q4_0.rows` of all matrices in a format, `norm.weights` (F32), blocks by
# name, and whatever else a runtime's time and memory depend on.
Inventory = dict[str, Any]
Extent = int | Tensor  # how much of an axis is in use: a prefix's length, or a mask over the axis


def extent(choice: Choice, widths: Sequence[int]) -> Extent:
    """Return a hard width as itself, a soft one as a mask (widths[-1],) with entry i = P(width > i)."""
    if not isinstance(choice, Tensor):
        return int(choice)
    steps = [widths[0], *(b - a for a, b in pairwise(widths))]
    survival = choice.flip(0).cumsum(0).flip(0)
    return survival.repeat_interleave(torch.tensor(steps, device=choice.device), output_size=widths[-1])


def expected(choice: Choice, values: Sequence[float]) -> Any:
    """Return the mean of `values` under a soft choice; under a hard one, the choice itself."""
    if isinstance(choice, Tensor):
        return choice @ choice.new_tensor(values)
    return choice


def shares(choice: Choice, values: Sequence[Value]) -> dict[Value, Any]:
    """Return value -> probability; a hard choice is certain, and may be none of `values` (F32, unrounded)."""
    if isinstance(choice, Tensor):
        return dict(zip(values, choice.unbind(), strict=True))
    return {choice: 1.0}


def under(choices: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the choices of the genes below `prefix`, under their local names."""
    return {name[len(prefix) :]: choice for name, choice in choices.items() if name.startswith(prefix)}


class Linear(nn.Module):
    """A plain projection whose weight (out, in) is stored in a format."""

    def __init__(self, weight: Tensor, weight_format: WeightFormat) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=torch.is_grad_enabled())
        self.format = weight_format

    def effective(self) -> Tensor:
        """Return the weight (out, in) as the runtime will see it."""
        return self.format.fake_quantize(self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=torch.is_grad_enabled())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., d_model)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ElasticLinear(nn.Module):
    """A projection whose out- and in-dimension are each one or more elastic axes.

    The weight has shape (*out_axes, *in_axes); flattening gives the (out, in) matrix. Prefixes are taken
    per axis, so a prefix of key-value heads keeps whole heads.
    """

    def __init__(self, out_axes: Sequence[int], in_axes: Sequence[int], formats: Sequence[str]) -> None:
        super().__init__()
        self.n_out_axes = len(out_axes)
        self.formats = tuple(format_named(name) for name in formats)
        self.weight = nn.Parameter(torch.empty(*out_axes, *in_axes))
        nn.init.normal_(self.weight, std=1 / math.sqrt(math.prod(in_axes)))

    def _matrix(self, extents: Sequence[Extent], weight: Tensor) -> Tensor:
        """Return the hard extents' prefix of `weight`, flattened to (out, in)."""
        for axis, size in enumerate(extents):
            if isinstance(size, int):
                weight = weight.narrow(axis, 0, size)
        n_out = math.prod(weight.shape[: self.n_out_axes])
        return weight.reshape(n_out, -1)

    def effective(self, out: Sequence[Extent], in_: Sequence[Extent], choice: Choice) -> Tensor:
        """Return the weight (out, in) for the extents in use and a hard or soft format."""
        matrix = self._matrix((*out, *in_), self.weight)
        if not isinstance(choice, Tensor):
            matrix = format_named(str(choice)).fake_quantize(matrix)
        elif len(self.formats) == 1:
            matrix = self.formats[0].fake_quantize(matrix)
        else:
            quantized = torch.stack([f.quantize(matrix.detach()) for f in self.formats])
            matrix = torch.einsum("k,koi->oi", choice, quantized)
        # Masks come after quantization: a masked column must not change its group's scale.
        if any(isinstance(size, Tensor) for size in out):
            matrix = matrix * _flat_mask(out, self.weight.shape[: self.n_out_axes], matrix).unsqueeze(1)
        if any(isinstance(size, Tensor) for size in in_):
            matrix = matrix * _flat_mask(in_, self.weight.shape[self.n_out_axes :], matrix)
        return matrix

    def extract(self, out: Sequence[int], in_: Sequence[int], weight_format: str) -> Linear:
        """Return a plain projection with a copy of the prefix."""
        return Linear(self._matrix((*out, *in_), self.weight).detach().clone(), format_named(weight_format))


def _flat_mask(extents: Sequence[Extent], axes: Sequence[int], like: Tensor) -> Tensor:
    """Return the outer product of the extents' masks, flattened; hard extents are already sliced."""
    mask = like.new_ones(1)
    for size, axis in zip(extents, axes, strict=True):
        along = size if isinstance(size, Tensor) else like.new_ones(min(size, axis))
        mask = (mask.unsqueeze(1) * along).flatten()
    return mask


class ElasticRMSNorm(nn.Module):
    """RMSNorm over an elastic width.

    A soft width arrives with the channels already masked; the mean is then over the expected width.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, width: Extent) -> Tensor:
        """Normalize x (..., width)."""
        if isinstance(width, int):
            return F.rms_norm(x, (width,), self.weight[:width], self.eps)
        mean_square = x.pow(2).sum(-1, keepdim=True) / width.sum()
        return x * (mean_square + self.eps).rsqrt() * self.weight

    def extract(self, width: int) -> RMSNorm:
        """Return a plain norm with a copy of the prefix."""
        return RMSNorm(self.weight[:width].detach().clone(), self.eps)


class Block(nn.Module, ABC):
    """What one part of a plain layer adds to the residual stream: `x + block(x)`."""

    @abstractmethod
    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update (batch, tokens, d_model) for x; `rope` is (cos, sin), each (tokens, head_dim)."""


class ElasticModule(nn.Module, ABC):
    """One part of an elastic layer: declares its genes and obeys them.

    Local gene names are without the layer's prefix; a module that declares a switch `active` can be
    dropped. The width of the residual stream belongs to the model and is handed in.
    """

    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """Return the genes under their local names."""

    @abstractmethod
    def forward(self, x: Tensor, choice: Choices, width: Extent, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update (batch, tokens, width) for the residual stream x."""

    @abstractmethod
    def extract(self, choice: Mapping[str, Value], width: int) -> Block:
        """Return a plain block of real shape, inherited weights copied."""

    @abstractmethod
    def inventory(self, choice: Choices, width: Any) -> Inventory:
        """Return what a kept block ships, see `Inventory`; soft choices give the expectation."""

    @abstractmethod
    def stand_in(self, width: Any) -> Inventory:
        """Return what the zero tensors hold that a runtime needs in a dropped block's place."""

    @abstractmethod
    def intermediates(self, choice: Choices) -> dict[int, Any]:
        """Return how many values a kept block computes per token between its input and output -> probability."""


def add(total: Inventory, part: Inventory, factor: Any = 1.0, prefix: str = "") -> None:
    """Add `factor` times an inventory to `total`, under names that begin with `prefix`."""
    for name, count in part.items():
        total[prefix + name] = total.get(prefix + name, 0.0) + factor * count


def matrices(rows: Any, columns: Any, formats: Mapping[Value, Any]) -> Inventory:
    """Return the inventory of matrices with `rows` in sum, stored in each format with a probability."""
    found: Inventory = {}
    for name, share in formats.items():
        found[f"{name}.weights"], found[f"{name}.rows"] = share * rows * columns, share * rows
    return found


def inventory_bytes(inventory: Inventory) -> Any:
    """Return the (expected) bytes of all tensors in an inventory."""
    total: Any = 0.0
    for name, count in inventory.items():
        stored_as, _, what = name.rpartition(".")
        if what == "weights" and "." not in stored_as:  # with a second dot it is a share of what is counted already
            total = total + format_named("F32" if stored_as == "norm" else stored_as).n_bytes(count)
    return total
