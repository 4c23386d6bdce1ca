"""Weights shared by all their choices: slice for a hard choice, mix for a soft one.

A *choice* is either hard, a gene's value, or soft, a probability for each of its values. A hard width
slices, so a small subnet is really cheaper. A soft width becomes a mask with entry i = P(width > i), a
soft format mixes the quantized weights, sum_k p_k Q_k(W), so the relaxed net costs one forward pass
however many choices there are (EdMIPS, arXiv 2004.05795; TangleNAS, arXiv 2312.10440). A soft choice
that is one-hot computes what the hard choice computes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.errors import UserError
from supernet.formats import F32, Fitting, WeightFormat, format_named
from supernet.formats.activations import check_kv_format
from supernet.genes import Gene, Value
from supernet.inventory import Choice, Choices, Inventory
from supernet.plain import Block, Linear, Matrix, RMSNorm

Reordering = tuple[nn.Parameter, Callable[[Tensor], Tensor]]  # a weight, and what puts it in order
Extent = int | Tensor  # how much of an axis is in use: a prefix's length, or a mask over the axis


def extent(choice: Choice, widths: Sequence[int]) -> Extent:
    """Return a hard width as itself, a soft one as a mask (widths[-1],) with entry i = P(width > i)."""
    if not isinstance(choice, Tensor):
        return int(choice)
    steps = [widths[0], *(b - a for a, b in pairwise(widths))]
    survival = choice.flip(0).cumsum(0).flip(0)
    return survival.repeat_interleave(torch.tensor(steps, device=choice.device), output_size=widths[-1])


def under(choices: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the choices of the genes below `prefix`, under their local names."""
    return {name[len(prefix) :]: choice for name, choice in choices.items() if name.startswith(prefix)}


class ElasticLinear(nn.Module):
    """A projection whose out- and in-dimension are each one or more elastic axes.

    The weight has shape (*out_axes, *in_axes); flattening gives the (out, in) matrix. Prefixes are taken
    per axis, so a prefix of key-value heads keeps whole heads.
    """

    def __init__(
        self,
        out_axes: Sequence[int],
        in_axes: Sequence[int],
        formats: Sequence[str],
        scales: Mapping[str, Fitting] | None = None,
    ) -> None:
        super().__init__()
        self.n_out_axes, self.emulated = len(out_axes), False
        self.formats = {name: format_named(name, (scales or {}).get(name, "absmax")) for name in formats}
        self.weight = nn.Parameter(torch.empty(*out_axes, *in_axes))
        nn.init.normal_(self.weight, std=1 / math.sqrt(math.prod(in_axes)))
        self.log_factors = nn.ParameterDict()
        for name, f in self.formats.items():
            if f.fitting == "learned":
                if in_axes[-1] % f.part:
                    raise UserError(f"model.scales.{name}: a width of {in_axes[-1]} holds no parts of {f.part} weights")
                shape = (*out_axes, *in_axes[:-1], in_axes[-1] // f.part)
                self.log_factors[name] = nn.Parameter(torch.empty(shape))
        self.restart_factors()

    @torch.no_grad()
    def restart_factors(self) -> list[nn.Parameter]:
        """Set the learned factors to what their formats begin with, and return them."""
        for name, factors in self.log_factors.items():
            factors.fill_(math.log(self.formats[name].factor))
        return list(self.log_factors.values())

    def format(self, name: str) -> WeightFormat:
        """Return a format with its scales fitted as the model asks; any other as it is by itself."""
        return self.formats.get(name) or format_named(name)

    def matrix(self, extents: Sequence[Extent], weight: Tensor) -> Tensor:
        """Return the hard extents' prefix of `weight`, flattened to (out, in); the last axis may be in parts."""
        part = self.weight.shape[-1] // weight.shape[-1]
        for axis, size in enumerate(extents):
            if isinstance(size, int):
                weight = weight.narrow(axis, 0, size if axis < weight.ndim - 1 else size // part)
        n_out = math.prod(weight.shape[: self.n_out_axes])
        return weight.reshape(n_out, -1)

    def learned(self, extents: Sequence[Extent], name: str) -> Tensor | None:
        """Return the logarithms of the learned factors (out, in / part) of a format; None where there are none."""
        return self.matrix(extents, self.log_factors[name]) if name in self.log_factors else None

    def effective(self, out: Sequence[Extent], in_: Sequence[Extent], choice: Choice) -> Matrix:
        """Return the weight (out, in) for the extents in use and a hard or soft format.

        A soft format is a mixture of weights, so its activations are not rounded.
        """
        extents = (*out, *in_)
        matrix, activations = self.matrix(extents, self.weight), F32.name
        if not isinstance(choice, Tensor):
            name = str(choice)
            matrix = self.format(name).fake_quantize(matrix, self.learned(extents, name))
            activations = self.format(name).activations if self.emulated else activations
        else:
            matrix = self._mixed(extents, matrix.detach(), choice)
        # Masks come after quantization: a masked column must not change its group's scale.
        if any(isinstance(size, Tensor) for size in out):
            matrix = matrix * _flat_mask(out, self.weight.shape[: self.n_out_axes], matrix).unsqueeze(1)
        if any(isinstance(size, Tensor) for size in in_):
            matrix = matrix * _flat_mask(in_, self.weight.shape[self.n_out_axes :], matrix)
        return Matrix(matrix, activations)

    def _mixed(self, extents: Sequence[Extent], matrix: Tensor, choice: Tensor) -> Tensor:
        """Return the mean of the rounded weights under a soft format.

        Of rows that are no multiple of a format's group the format stores a prefix, for narrower choices: the rest has
        no part in it. (A prefix of inner axes makes other groups: that mixture is only near what a hard choice has.)
        """
        total: Any = 0.0
        for share, (name, f) in zip(choice.unbind(), self.formats.items(), strict=True):
            with torch.no_grad():
                factors = self.learned(extents, name)
                quantized = quantized_prefix(f, matrix, None if factors is None else factors.exp())
            total = total + share * F.pad(quantized, (0, matrix.shape[-1] - quantized.shape[-1]))
        return torch.as_tensor(total)

    def extract(self, out: Sequence[int], in_: Sequence[int], name: str) -> Linear:
        """Return a plain projection with a copy of the prefix."""
        extents = (*out, *in_)
        learned = self.learned(extents, name)
        copied = None if learned is None else learned.detach().clone()
        linear = Linear(self.matrix(extents, self.weight).detach().clone(), self.format(name), copied)
        linear.emulated = self.emulated
        return linear


def quantized_prefix(weight_format: WeightFormat, matrix: Tensor, factors: Tensor | None) -> Tensor:
    """Return the longest prefix of the rows (out, in) that a format can store, as it stores it."""
    stored = matrix.shape[-1] - matrix.shape[-1] % weight_format.group
    if factors is not None:
        factors = factors[:, : stored // weight_format.part]
    return weight_format.quantize(matrix[:, :stored], factors) if stored else matrix[:, :0]


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


class Stream(NamedTuple):
    """Where a block meets the residual stream; its channels are one axis of each of these weights.

    Attributes:
        norm: of what the block reads, with a gain for each channel.
        readers: projections of what the norm returns: channels are their in-dimension.
        writers: projections whose sum is the update: channels are their out-dimension.
    """

    norm: ElasticRMSNorm
    readers: tuple[ElasticLinear, ...]
    writers: tuple[ElasticLinear, ...]


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
    def inventory(self, choice: Choices, width: Mapping[int, Any]) -> Inventory:
        """Return what a kept block ships, see `Inventory`; soft choices give the expectation.

        Args:
            choice: of the local genes.
            width: of the residual stream -> probability.
        """

    @abstractmethod
    def stand_in(self, width: Mapping[int, Any]) -> Inventory:
        """Return what the zero tensors hold that a runtime needs in a dropped block's place."""

    @abstractmethod
    def stream(self) -> Stream:
        """Return what reads and what writes the residual stream: all weights that are as wide as it."""

    @abstractmethod
    def ordered(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[list[int], list[Reordering]]:
        """Return what puts the parts that prefixes are made of in order of importance for x, the most important first.

        Returns:
            Their places before, in the new order; and each weight with the function that reorders it.
        """

    @abstractmethod
    def intermediates(self, choice: Choices) -> dict[int, Any]:
        """Return how many values a kept block computes per token between its input and output -> probability."""


def format_gene(name: str, formats: tuple[str, ...], row: tuple[str, ...], unit: int = 1) -> Gene:
    """Return a block's gene over the formats of some projections, whose rows are as long as the genes `row` say.

    Args:
        name: local.
        formats: in ascending cost.
        row: names of the width genes, local or `d_model`, whose product times `unit` is the length of a row.
        unit: weights for each.
    """
    groups = tuple(format_named(f).group for f in formats)
    return Gene(name, formats, "format", needs="active", row=row, unit=unit, groups=groups)


def emulate(network: nn.Module, activations: bool = True, kv_format: str | None = None) -> None:
    """Make every projection and attention in a network round activations as llama.cpp does, or leave them.

    Args:
        network: a supernet, a decoder or a part of one; before its formats are frozen or after.
        activations: of products with quantized weights.
        kv_format: of cached keys and values, see `as_cached`; None: not rounded.
    """
    for module in network.modules():
        if isinstance(module, Linear | ElasticLinear):
            module.emulated = activations
        elif hasattr(module, "kv_format"):
            module.kv_format = check_kv_format("kv_format", kv_format)  # type: ignore[assignment]
