"""What a weight format is: codes, scales, and where the scales come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from supernet.errors import UserError

Encoded = tuple[Tensor, ...]
Fitting = Literal["absmax", "clip", "mse", "learned"]
MB = 1e6  # bytes
F16_MAX = 65504.0  # a larger scale would be stored as infinity


class WeightFormat(ABC):
    """A deployable weight encoding.

    Attributes:
        name: as the runtime spells it.
        bits: bits per weight, scales included.
        group: every stored row is a multiple of it.
        part: weights behind one scale that can be fitted; 0: there is none.
        activations: what the runtime rounds the inputs of a product with such weights to, see `activations.py`.
        fitting: where the scales come from: `absmax`, so that the largest weight is met; `clip`, a fixed fraction of
            that; `mse`, the fraction among some that errs least; `learned`, a factor that is trained with the weights.
        factor: that fraction; what a learned factor begins with. 1: the format has no use for `clip`.
    """

    name: ClassVar[str]
    bits: ClassVar[float]
    group: ClassVar[int] = 1
    part: ClassVar[int] = 0
    activations: ClassVar[str] = "F32"
    factor: ClassVar[float] = 1.0

    def __init__(self, fitting: Fitting = "absmax") -> None:
        if fitting not in self.fittings():
            known = ", ".join(self.fittings())
            raise UserError(f"model.scales.{self.name} must be one of {known}, got {fitting!r} (conf/model/)")
        self.fitting = fitting

    @classmethod
    def fittings(cls) -> tuple[Fitting, ...]:
        """Return where the scales can come from."""
        if not cls.part:
            return ("absmax",)
        return tuple(way for way in get_args(Fitting) if way != "clip" or cls.factor != 1)

    @abstractmethod
    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Return what is stored of float32 `weight` (..., in): codes (..., in) first, then scales.

        Args:
            weight: to be stored.
            factors: learned factors on the scales (..., in / part); None: by `fitting`.
        """

    def codes(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """Return the codes (..., in) nearest to float32 `weight` (..., in) under scales that are stored already."""
        return self.encode(weight)[0]

    @abstractmethod
    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Return the float32 weights (..., in) that a runtime computes from what is stored."""

    def quantize(self, weight: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return `decode(*encode(weight, factors))`: the weights as the runtime sees them."""
        return self.decode(*self.encode(weight, factors))

    def fake_quantize(self, weight: Tensor, log_factors: Tensor | None = None) -> Tensor:
        """Return `quantize(weight)`, with the gradient of the identity.

        Args:
            weight: (..., in).
            log_factors: logarithms of learned factors (..., in / part); their gradient is that of a learned
                step (LSQ, arXiv 1902.08153, eq. 3): code x step - weight x [not clipped].
        """
        factors = None if log_factors is None else log_factors.detach().exp()
        if not torch.is_grad_enabled() or not weight.requires_grad:
            return self.quantize(weight, factors)
        with torch.no_grad():
            quantized = self.quantize(weight, factors)
            response = None
            if factors is not None:
                response = quantized - weight.masked_fill(self.clipped(weight, factors), 0.0)
        return _StraightThrough.apply(weight, quantized, log_factors, response)

    def clipped(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return which weights (..., in) lie beyond the last code, more than rounding would bring back."""
        return torch.zeros_like(weight, dtype=torch.bool)

    def n_bytes(self, n_weights: float) -> float:
        """Return the bytes that `n_weights` (an expectation may be fractional) take."""
        return n_weights * self.bits / 8


class _StraightThrough(torch.autograd.Function):
    """Forward the second argument; pass the gradient to the first, and times the response to the factors."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, quantized: Tensor, log_factors: Tensor | None, response: Tensor | None
    ) -> Tensor:
        if log_factors is not None and response is not None:
            ctx.save_for_backward(response)
            ctx.parts = log_factors.shape[-1]
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        (gradient,) = gradients
        if not ctx.saved_tensors:
            return gradient, None, None, None
        (response,) = ctx.saved_tensors
        return gradient, None, (gradient * response).unflatten(-1, (ctx.parts, -1)).sum(-1), None


class F32(WeightFormat):
    """Weights as trained: norms ship in it, and full precision trains in it."""

    name, bits = "F32", 32

    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Return the weights themselves; there are no scales."""
        return (weight,)

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Return the codes."""
        return codes

    def fake_quantize(self, weight: Tensor, log_factors: Tensor | None = None) -> Tensor:
        """Return the weight."""
        return weight


class F16(WeightFormat):
    """IEEE half precision."""

    name, bits, activations = "F16", 16, "F16"

    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Round to float16; there are no scales."""
        return (weight.half(),)

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Widen to float32."""
        return codes.float()


class ScaledFormat(WeightFormat):
    """Integer codes times a scale, less an offset where a format has one: both shared by a part of a group.

    `fitted` are scale and offset as one would like them, `store` rounds them to what the format holds, and
    `stored` reads that back; codes are those nearest under what was read back.
    """

    low: ClassVar[int]
    high: ClassVar[int]
    fractions: ClassVar[tuple[float, ...]] = (1.1, 1.05, 1.0, 0.95, 0.9)  # that `mse` tries

    @abstractmethod
    def store(self, scale: Tensor, offset: Tensor | None) -> Encoded:
        """Return what is stored of the scales and offsets (..., parts)."""

    @abstractmethod
    def stored(self, *scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the float32 scales and offsets (..., parts) that a runtime reads."""

    def extremes(self, parts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scale and offset (..., parts) that meet the largest weight of each part (..., parts, part).

        An even number of codes reaches one further below zero, so the entry of largest magnitude is put
        there: its sign becomes the scale's.
        """
        smallest, largest = parts.aminmax(dim=-1)
        return torch.where(-smallest >= largest, smallest, largest) / self.low, None

    def encode(self, weight: Tensor, factors: Tensor | None = None) -> Encoded:
        """Return int8 codes (..., in) and what `store` makes of the scales."""
        parts = weight.unflatten(-1, (-1, self.part))
        scales = self.store(*self._fitted(parts, factors))
        return self.codes(weight, *scales), *scales

    def codes(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """Return the nearest int8 codes (..., in)."""
        parts = weight.unflatten(-1, (-1, self.part))
        return self._codes(parts, *self.stored(*scales)).to(torch.int8).flatten(-2)

    def decode(self, codes: Tensor, *scales: Tensor) -> Tensor:
        """Return codes x scale - offset in float32."""
        parts = codes.unflatten(-1, (-1, self.part)).float()
        return _values(parts, *self.stored(*scales)).flatten(-2)

    def quantize(self, weight: Tensor, factors: Tensor | None = None) -> Tensor:
        """Return `decode(*encode(weight, factors))` without the detour over int8 (the values are the same)."""
        parts = weight.unflatten(-1, (-1, self.part))
        scales = self.stored(*self.store(*self._fitted(parts, factors)))
        return _values(self._codes(parts, *scales), *scales).flatten(-2)

    def clipped(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return which weights (..., in) lie more than half a step beyond the last code."""
        parts = weight.unflatten(-1, (-1, self.part))
        codes = self._unrounded(parts, *self.stored(*self.store(*self._fitted(parts, factors))))
        return ((codes < self.low - 0.5) | (codes > self.high + 0.5)).flatten(-2)

    def _fitted(self, parts: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale, offset = self.extremes(parts)
        if factors is None and self.fitting == "clip":
            factors = torch.full_like(scale, self.factor)
        if factors is None and self.fitting == "mse":
            factors = self._least_squares(parts, scale, offset)
        if factors is None:
            return scale, offset
        return scale * factors, None if offset is None else offset * factors

    def _least_squares(self, parts: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Return the fraction (..., parts) of scale and offset under which rounding errs least."""
        best = factors = None
        for fraction in self.fractions:
            scaled = scale * fraction, None if offset is None else offset * fraction
            error = (_values(self._codes(parts, *scaled), *scaled).sub_(parts)).square_().sum(-1)
            if best is None or factors is None:
                best, factors = error, torch.full_like(error, fraction)
            else:
                factors = torch.where(error < best, fraction, factors)
                best = torch.minimum(error, best)
        assert factors is not None
        return factors

    def rounded(self, codes: Tensor) -> Tensor:
        """Return the codes nearest to some that are not whole, as floats; may work in place."""
        return codes.round_().clamp_(self.low, self.high)

    def _codes(self, parts: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        return self.rounded(self._unrounded(parts, scale, offset))

    def _unrounded(self, parts: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        # A zero scale is a part of zeros (or of values its store cannot tell from it): its codes are 0.
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale).unsqueeze(-1)
        return parts * inverse if offset is None else (parts + offset.unsqueeze(-1)) * inverse


def nearest(values: Tensor, bounds: Sequence[float]) -> Tensor:
    """Return how many of the ascending bounds each value exceeds, as int8: the place of the level nearest to it."""
    places = torch.zeros_like(values, dtype=torch.int8)
    for bound in bounds:  # three times as fast as torch.bucketize on a CPU
        places += values > bound
    return places


def _values(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Return codes x scale - offset, in place of the codes."""
    values = codes.mul_(scale.unsqueeze(-1))
    return values if offset is None else values.sub_(offset.unsqueeze(-1))
