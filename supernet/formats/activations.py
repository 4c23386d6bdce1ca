"""What llama.cpp does to activations: inputs of a quantized product are rounded to int8, cached keys and values stored.

Emulated in float32 with the gradient passed straight through. With it, what we evaluate is what the runtime computes
but for the order of summation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from supernet.errors import UserError

Rounding = Callable[[Tensor], Tensor]


def _f16(x: Tensor) -> Tensor:
    return x.half().float()


def _q8_0(x: Tensor) -> Tensor:
    """Blocks of 32 with a float16 scale; the codes come from the unrounded one (ggml's quantize_row_q8_0)."""
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where(largest == 0, 0.0, 127 / largest)).round_()
    return codes.mul_((largest / 127).half().float()).flatten(-2)


def _q8_k(x: Tensor) -> Tensor:
    """Blocks of 256 with a float32 scale that puts the largest entry at -127 (ggml's quantize_row_q8_K)."""
    blocks = x.unflatten(-1, (-1, 256))
    smallest, largest = blocks.aminmax(dim=-1, keepdim=True)
    extreme = torch.where(-smallest > largest, smallest, largest)
    inverse = torch.where(extreme == 0, 0.0, -127 / extreme)
    codes = (blocks * inverse).round_().clamp_max_(127)
    return (codes * torch.where(extreme == 0, 0.0, 1 / inverse)).flatten(-2)


ROUNDINGS: dict[str, Rounding] = {"F16": _f16, "Q8_0": _q8_0, "Q8_K": _q8_k}
KV_FORMATS = ("F16", "Q8_0")


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, rounding: Rounding) -> Tensor:
        return rounding(x.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rounded(x: Tensor, kind: str | None) -> Tensor:
    """Return activations (..., n) as the runtime rounds them; None or F32: as they are."""
    if kind is None or kind == "F32":
        return x
    result: Tensor = _StraightThrough.apply(x, ROUNDINGS[kind])
    return result


def as_cached(q: Tensor, k: Tensor, v: Tensor, kv_format: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (..., head_dim) as attention meets them with a cache in a format.

    A cache in Q8_0 is multiplied in integers, queries too. Beside F16 they stay as they are from 64 tokens at once on;
    fewer are rounded to F16, and their sums as well, which is not emulated.
    """
    return rounded(q, None if kv_format == "F16" else kv_format), rounded(k, kv_format), rounded(v, kv_format)


def check_kv_format(key: str, name: str | None) -> str | None:
    """Return the name of a key-value cache format, or None for none.

    Raises:
        UserError: it is not known.
    """
    if name is not None and name not in KV_FORMATS:
        raise UserError(f"{key} must be null or one of {', '.join(KV_FORMATS)}, got {name!r}")
    return name
