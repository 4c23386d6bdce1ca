"""Blocks of 256 weights in 16 parts whose scales are codes too: llama.cpp's K-formats (ggml-common.h)."""

from typing import ClassVar

import torch
from torch import Tensor

from supernet.formats.base import F16_MAX, Encoded, ScaledFormat

PARTS = 16  # of a block


class _KBlock(ScaledFormat):
    """16 weights share an integer scale, 256 weights a float16 that it is multiplied with."""

    group, part = 256, 16
    activations = "Q8_K"


class _Signed(_KBlock):
    """Signed scales, no offset."""

    lowest_scale: ClassVar[int]
    highest_scale: ClassVar[int]

    def store(self, scale: Tensor, offset: Tensor | None) -> Encoded:
        """Return float16 factors (..., in / 256) and int8 scales (..., in / 16).

        The scale of largest magnitude goes to the lowest code, which reaches one further.
        """
        blocks = scale.unflatten(-1, (-1, PARTS))
        smallest, largest = blocks.aminmax(dim=-1)
        factor = torch.where(-smallest >= largest, smallest, largest) / self.lowest_scale
        stored = factor.clamp(-F16_MAX, F16_MAX).half()
        inverse = torch.where(stored == 0, 0.0, 1.0 / stored.float()).unsqueeze(-1)
        codes = (blocks * inverse).round_().clamp_(self.lowest_scale, self.highest_scale)
        return stored, codes.to(torch.int8).flatten(-2)

    def stored(self, *scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return factor x integer scale."""
        factor, codes = scales
        return (codes.unflatten(-1, (-1, PARTS)).float() * factor.float().unsqueeze(-1)).flatten(-2), None


class Q6_K(_Signed):
    """6-bit codes in [-32, 31] and 8-bit scales: 210 bytes for 256 weights."""

    name, bits, low, high = "Q6_K", 6.5625, -32, 31
    lowest_scale, highest_scale = -128, 127


class Q3_K(_Signed):
    """3-bit codes in [-4, 3] and 6-bit scales: 110 bytes for 256 weights."""

    name, bits, low, high = "Q3_K", 3.4375, -4, 3
    lowest_scale, highest_scale = -32, 31
    factor = 0.97


class Q2_K(_KBlock):
    """2-bit codes in [0, 3], 4-bit scales and 4-bit offsets: 84 bytes for 256 weights."""

    name, bits, low, high = "Q2_K", 2.625, 0, 3
    factor = 0.8
    fractions = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

    def extremes(self, parts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a third of the range and minus its lower end, which is not above zero."""
        smallest, largest = parts.aminmax(dim=-1)
        offset = -smallest.clamp_max(0)
        return (largest + offset).clamp_min_(0) / self.high, offset

    def store(self, scale: Tensor, offset: Tensor | None) -> Encoded:
        """Return float16 factors (..., in / 256, 2) and int8 codes (..., in / 16, 2) of scales and offsets."""
        assert offset is not None
        blocks = torch.stack((scale, offset), -1).unflatten(-2, (-1, PARTS))
        factor = (blocks.amax(-2) / 15).clamp_max(F16_MAX).half()
        inverse = torch.where(factor == 0, 0.0, 1.0 / factor.float()).unsqueeze(-2)
        codes = (blocks * inverse).round_().clamp_(0, 15)
        return factor, codes.to(torch.int8).flatten(-3, -2)

    def stored(self, *scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return factor x code of scales and offsets."""
        factor, codes = scales
        both = (codes.unflatten(-2, (-1, PARTS)).float() * factor.float().unsqueeze(-2)).flatten(-3, -2)
        return both[..., 0], both[..., 1]
