"""The formats of bitsandbytes, which Hugging Face checkpoints hold: NF4, and LLM.int8 as a baseline."""

import torch
from torch import Tensor

from supernet.formats.base import Encoded, ScaledFormat, WeightFormat, nearest

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (QLoRA, arXiv 2305.14314, appendix E).
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
NF4_BOUNDS = ((torch.tensor(NF4_VALUES)[:-1] + torch.tensor(NF4_VALUES)[1:]) / 2).tolist()
SMALLEST = 1e-38  # absolute maximum that bitsandbytes divides by


class NF4(WeightFormat):
    """4-bit quantiles of a normal distribution and a float32 scale: 36 bytes for 64 weights.

    Codes and scales are those of `bitsandbytes.functional.quantize_4bit` without double quantization, to the bit,
    ties included. Its blocks run over the flattened matrix; rows are multiples of 64 here, so none crosses a row.
    """

    name, bits = "NF4", 4.5
    group = part = 64

    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Return int8 codes in [0, 15] (..., in) and the float32 absolute maxima (..., in / 64)."""
        parts = weight.unflatten(-1, (-1, self.part))
        scales = self._scales(parts, factors)
        return _nearest(parts, scales).flatten(-2), scales

    def codes(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """Return the nearest int8 codes (..., in)."""
        return _nearest(weight.unflatten(-1, (-1, self.part)), scales[0]).flatten(-2)

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Return quantile x scale in float32."""
        return _values(codes.unflatten(-1, (-1, self.part)), scales[0]).flatten(-2)

    def quantize(self, weight: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return `decode(*encode(weight, factors))` without the detour over int8 (the values are the same)."""
        parts = weight.unflatten(-1, (-1, self.part))
        scales = self._scales(parts, factors)
        return _values(_nearest(parts, scales), scales).flatten(-2)

    def clipped(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return which weights (..., in) exceed the scale: the last values are its ends."""
        parts = weight.unflatten(-1, (-1, self.part))
        return (parts.abs() > self._scales(parts, factors).unsqueeze(-1)).flatten(-2)

    def _scales(self, parts: Tensor, factors: Tensor | None) -> Tensor:
        scales = parts.abs().amax(-1)
        if factors is not None:
            return scales * factors
        if self.fitting != "mse":
            return scales
        tried = torch.stack([scales * fraction for fraction in ScaledFormat.fractions])
        errors = torch.stack([(_values(_nearest(parts, s), s) - parts).square_().sum(-1) for s in tried])
        return tried.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)


def _nearest(parts: Tensor, scales: Tensor) -> Tensor:
    """Return the int8 codes of parts (..., parts, 64); a weight midway between two values takes the lower."""
    # bitsandbytes multiplies by the inverse, too: a division would round otherwise.
    scaled = parts * (1.0 / scales.clamp_min(SMALLEST)).unsqueeze(-1)
    return nearest(scaled, NF4_BOUNDS)


def _values(codes: Tensor, scales: Tensor) -> Tensor:
    """Return quantile x scale (..., parts, 64)."""
    values = scales.new_tensor(NF4_VALUES).index_select(0, codes.int().flatten())
    return values.view(codes.shape).mul_(scales.unsqueeze(-1))


class INT8(WeightFormat):
    """8-bit codes in [-127, 127] and a float32 scale for each row (LLM.int8, arXiv 2208.07339).

    The scale belongs to a whole row, so slicing columns does not commute with encoding: a baseline to compare
    with, never a choice of a gene. `bits` leaves the scales out: they are 32 bits a row, however long it is.
    """

    name, bits = "INT8", 8

    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Return int8 codes (..., in) and the float32 absolute maxima (..., 1)."""
        scales = weight.abs().amax(-1, keepdim=True)
        return self.codes(weight, scales), scales

    def codes(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """Return the nearest int8 codes (..., in)."""
        inverse = torch.where(scales[0] == 0, 0.0, 127.0 / scales[0])
        return (weight * inverse).round_().clamp_(-127, 127).to(torch.int8)

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Return code x scale / 127 in float32."""
        return codes * scales[0] * (1 / 127)
