"""The parts of a plain net: weights in a format, norms, blocks."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.formats import F32, Encoded, WeightFormat
from supernet.formats.activations import rounded


class Matrix(NamedTuple):
    """A weight (out, in) as the runtime sees it, and what that rounds the inputs of a product to (F32: nothing)."""

    weight: Tensor
    activations: str = F32.name

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product (..., out) with x (..., in)."""
        return F.linear(rounded(x, self.activations), self.weight)


def project(x: Tensor, *matrices: Matrix) -> list[Tensor]:
    """Return the products of x (..., in) with matrices in one format: x is rounded once."""
    x = rounded(x, matrices[0].activations)
    return [F.linear(x, matrix.weight) for matrix in matrices]


SCALES = "scales_"  # prefix of the buffers that hold scales which stay


class Linear(nn.Module):
    """A plain projection whose weight (out, in) is stored in a format, with learned factors on its scales or not.

    Its scales follow the weight, until `fix_scales`; fixed ones travel with the state.

    Attributes:
        activations: what the runtime rounds its inputs to, whatever becomes of `format`.
        emulated: whether that is done here.
        rounds: whether `effective` rounds the weight; what is stored always is.
    """

    log_factors: nn.Parameter | None

    def __init__(self, weight: Tensor, weight_format: WeightFormat, log_factors: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=torch.is_grad_enabled())
        self.format, self.activations, self.emulated = weight_format, weight_format.activations, False
        self.rounds = True
        learned = None if log_factors is None else nn.Parameter(log_factors, requires_grad=torch.is_grad_enabled())
        self.register_parameter("log_factors", learned)

    def effective(self) -> Matrix:
        """Return the weight (out, in) as the runtime will see it; rounded on fixed scales it has no gradient."""
        weight: Tensor = self.weight
        if self.rounds and self.scales:
            weight = self.format.decode(*self.encoded())
        elif self.rounds:
            weight = self.format.fake_quantize(weight, self.log_factors)
        return Matrix(weight, self.activations if self.emulated else F32.name)

    @torch.no_grad()
    def encoded(self) -> Encoded:
        """Return what is stored of the weight: codes (out, in), then scales."""
        if self.scales:
            return self.format.codes(self.weight.float(), *self.scales), *self.scales
        factors = None if self.log_factors is None else self.log_factors.float().exp()
        return self.format.encode(self.weight.float(), factors)

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """Scales that stay whatever becomes of the weight; none before `fix_scales`."""
        return tuple(self.buffers(recurse=False))

    def fix_scales(self) -> None:
        """Keep the scales that the weight has now."""
        for number, scale in enumerate(self.encoded()[1:]):
            self.register_buffer(f"{SCALES}{number}", scale)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        for key in (key for key in state_dict if key.startswith(prefix + SCALES)):
            self.register_buffer(key.removeprefix(prefix), torch.empty_like(state_dict[key], device=self.weight.device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    @torch.no_grad()
    def freeze(self) -> None:
        """Round the weight to its format, once; from then on it is used as it is."""
        self.weight.copy_(self.format.decode(*self.encoded()))
        self.store_as(F32())

    def store_as(self, weight_format: WeightFormat) -> None:
        """Store the weight in another format from now on; its scales follow the weight, and no factors are on them."""
        self.format, self.log_factors = weight_format, None
        self._buffers.clear()


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=torch.is_grad_enabled())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., d_model)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Cache:
    """What an attention block remembers of the tokens so far.

    Args:
        n_tokens: it has room for.
    """

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens, self.length = n_tokens, 0
        self._kept: list[Tensor] = []

    def add(self, *of_token: Tensor) -> list[Tensor]:
        """Keep tensors (batch, heads, 1, channels) of one more token; return them (batch, heads, tokens, channels)."""
        if not self._kept:
            self._kept = [x.new_empty(*x.shape[:2], self.n_tokens, x.shape[3]) for x in of_token]
        for kept, x in zip(self._kept, of_token, strict=True):
            kept[:, :, self.length] = x[:, :, 0]
        self.length += 1
        return [kept[:, :, : self.length] for kept in self._kept]


class Block(nn.Module, ABC):
    """What one part of a plain layer adds to the residual stream: `x + block(x)`."""

    @abstractmethod
    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the update (batch, tokens, d_model) for x; `rope` is (cos, sin), each (tokens, head_dim)."""

    def step(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        """Return the update (batch, 1, d_model) for one more token x; a block that looks back keeps it in the cache.

        Args:
            x: of the token (batch, 1, d_model).
            rope: (cos, sin) of its position, each (1, head_dim).
            cache: of this block.
        """
        return self(x, rope)
