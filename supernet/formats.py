"""Weight formats: how a matrix of weights is stored, to the bit.

`encode` turns float32 weights into integer codes and float16 scales, `decode` is what the runtime reads
back (llama.cpp's dequantization, operation for operation), and `fake_quantize` is both in a forward pass
with the gradient passed straight through (Bengio et al., arXiv 1308.3432).

Groups run along the last (in-) dimension, so slicing rows, or columns at group boundaries, commutes
with encoding. The block layouts follow llama.cpp's ggml-common.h.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from supernet.errors import UserError

Encoded = tuple[Tensor, Tensor]
MB = 1e6  # bytes
F16_MAX = 65504.0  # a larger scale would be stored as infinity


class WeightFormat(ABC):
    """A deployable weight encoding.

    Attributes:
        name: as llama.cpp spells it.
        bits: bits per weight, scales included.
        group: weights that share a scale; every stored row is a multiple of it.
    """

    name: ClassVar[str]
    bits: ClassVar[float]
    group: ClassVar[int] = 1

    @abstractmethod
    def encode(self, weight: Tensor) -> Encoded:
        """Return (codes, scales) of float32 `weight` (..., in): codes as stored, scales (..., in / group)."""

    @abstractmethod
    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the float32 weights (..., in) that a runtime computes from codes and scales."""

    def quantize(self, weight: Tensor) -> Tensor:
        """Return `decode(encode(weight))`: the nearest weights this format can store."""
        return self.decode(*self.encode(weight))

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """Return `quantize(weight)`, with the gradient of the identity."""
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return self.quantize(weight)
        with torch.no_grad():
            quantized = self.quantize(weight)
        return _StraightThrough.apply(weight, quantized)

    def n_bytes(self, n_weights: float) -> float:
        """Return the bytes that `n_weights` (an expectation may be fractional) take."""
        return n_weights * self.bits / 8


class _StraightThrough(torch.autograd.Function):
    """Forward the second argument, pass the gradient to the first."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class F32(WeightFormat):
    """Weights as trained: norms ship in it, and full precision trains in it."""

    name, bits = "F32", 32

    def encode(self, weight: Tensor) -> Encoded:
        """Return the weights themselves; there are no scales."""
        return weight, weight.new_empty(0)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return the codes."""
        return codes

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight


class F16(WeightFormat):
    """IEEE half precision."""

    name, bits = "F16", 16

    def encode(self, weight: Tensor) -> Encoded:
        """Round to float16; there are no scales."""
        return weight.half(), weight.new_empty(0)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Widen to float32."""
        return codes.float()


class _Symmetric(WeightFormat):
    """Integer codes times one float16 scale per group of 32 (scales fitted to the absolute maximum)."""

    group = 32
    low: ClassVar[int]
    high: ClassVar[int]

    def _scale(self, groups: Tensor) -> Tensor:
        """Return the scale (..., n_groups, 1) of `groups` (..., n_groups, 32).

        An even number of codes reaches one further below zero, so the entry of largest magnitude is put
        there: its sign becomes the scale's.
        """
        smallest, largest = groups.aminmax(dim=-1, keepdim=True)
        return (torch.where(-smallest >= largest, smallest, largest) / self.low).clamp(-F16_MAX, F16_MAX)

    def encode(self, weight: Tensor) -> Encoded:
        """Return int8 codes (..., in) and float16 scales (..., in / 32)."""
        groups = weight.unflatten(-1, (-1, self.group))
        scales = self._scale(groups).half()
        # A zero scale is a group of zeros (or of values float16 cannot tell from it): its codes are 0.
        inverse = torch.where(scales == 0, 0.0, 1.0 / scales.float())
        codes = (groups * inverse).round_().clamp_(self.low, self.high)
        return codes.to(torch.int8).flatten(-2), scales.squeeze(-1)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return codes × scale in float32."""
        groups = codes.unflatten(-1, (-1, self.group)).float()
        return groups.mul_(scales.float().unsqueeze(-1)).flatten(-2)

    def quantize(self, weight: Tensor) -> Tensor:
        """Return `decode(encode(weight))` without the detour over int8 (the values are the same)."""
        groups = weight.unflatten(-1, (-1, self.group))
        scales = self._scale(groups).half().float()
        inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
        return (groups * inverse).round_().clamp_(self.low, self.high).mul_(scales).flatten(-2)


class Q8_0(_Symmetric):
    """8-bit codes in [-127, 127] and a scale: 34 bytes for 32 weights."""

    name, bits, low, high = "Q8_0", 8.5, -127, 127

    def _scale(self, groups: Tensor) -> Tensor:
        return (groups.abs().amax(dim=-1, keepdim=True) / 127).clamp_max(F16_MAX)


class Q5_0(_Symmetric):
    """5-bit codes in [-16, 15] and a scale: 22 bytes for 32 weights."""

    name, bits, low, high = "Q5_0", 5.5, -16, 15


class Q4_0(_Symmetric):
    """4-bit codes in [-8, 7] and a scale: 18 bytes for 32 weights."""

    name, bits, low, high = "Q4_0", 4.5, -8, 7


FORMATS: dict[str, WeightFormat] = {f.name: f for f in (Q4_0(), Q5_0(), Q8_0(), F16(), F32())}


def format_named(name: str) -> WeightFormat:
    """Return the format of that name.

    Raises:
        UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"unknown weight format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def check_formats(key: str, names: tuple[str, ...], widths: tuple[int, ...]) -> tuple[str, ...]:
    """Return `names` when each exists, they ascend in bits, and every width is a multiple of their group.

    Args:
        key: where the widths are set, for the message.
        names: format names.
        widths: lengths of the rows that are stored in these formats.

    Raises:
        UserError: one of the above fails.
    """
    formats = [format_named(name) for name in names]
    if [f.bits for f in formats] != sorted({f.bits for f in formats}) or not formats:
        raise UserError(f"{key}: formats must ascend in bits per weight, got {list(names)}")
    for f in formats:
        for width in widths:
            if width % f.group:
                raise UserError(f"{key}: a width of {width} does not fit {f.name}, whose groups hold {f.group} weights")
    return names
