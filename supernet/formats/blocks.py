"""Blocks of 32 weights with a float16 scale: llama.cpp's `_0` formats, and IQ4_NL (ggml-common.h)."""

from itertools import pairwise

import torch
from torch import Tensor

from supernet.formats.base import F16_MAX, Encoded, ScaledFormat, nearest


class _Block(ScaledFormat):
    """A float16 scale per group of 32."""

    group = part = 32
    activations = "Q8_0"

    def store(self, scale: Tensor, offset: Tensor | None) -> Encoded:
        """Return the scales in float16."""
        return (scale.clamp(-F16_MAX, F16_MAX).half(),)

    def stored(self, *scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scales in float32; there are no offsets."""
        return scales[0].float(), None


class Q8_0(_Block):
    """8-bit codes in [-127, 127] and a scale: 34 bytes for 32 weights."""

    name, bits, low, high = "Q8_0", 8.5, -127, 127

    def extremes(self, parts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the largest magnitude / 127: the codes are symmetric."""
        return torch.linalg.vector_norm(parts, torch.inf, dim=-1) / 127, None


class Q5_0(_Block):
    """5-bit codes in [-16, 15] and a scale: 22 bytes for 32 weights."""

    name, bits, low, high = "Q5_0", 5.5, -16, 15


class Q4_0(_Block):
    """4-bit codes in [-8, 7] and a scale: 18 bytes for 32 weights."""

    name, bits, low, high = "Q4_0", 4.5, -8, 7


class IQ4_NL(_Block):
    """16 uneven levels in [-127, 113] and a scale: 18 bytes for 32 weights, denser where weights are.

    Where rows fit no K-format it errs least of what takes 4.5 bits. Its codes are the levels themselves.
    """

    name, bits, low, high = "IQ4_NL", 4.5, -127, 113
    levels = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    bounds = tuple((a + b) / 2 for a, b in pairwise(levels))

    def rounded(self, codes: Tensor) -> Tensor:
        """Return the nearest levels."""
        places = nearest(codes, self.bounds)
        return codes.new_tensor(self.levels).index_select(0, places.int().flatten()).view(codes.shape)
