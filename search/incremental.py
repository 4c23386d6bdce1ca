"""Rounding a net little by little: what is rounded stays, what is not makes up for it."""

import math

import torch
from torch import Tensor, nn

from supernet.plain import Linear
from supernet.subnet import Decoder


class IncrementalRounding(nn.Module):
    """Rounds a growing share of each matrix for good, its largest weights first (INQ, arXiv 1702.03044).

    The weights that are left train on, unrounded, around those that are settled. Scales are those of the weights when
    the first are settled. To pass gradients straight through the rounding of all weights, instead, is a walk among
    roundings until the learning rate is nearly zero.

    Args:
        decoder: whose weights are trained; formats without scales (F16, F32) are left alone.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        # In a list: the weights are the decoder's, not this module's.
        self._linears = [linear for linear in decoder.linears() if linear.format.group > 1]
        for number, linear in enumerate(self._linears):  # NaN: not settled
            self.register_buffer(f"settled_{number}", torch.full_like(linear.weight, math.nan, requires_grad=False))

    def _all(self) -> list[tuple[Linear, Tensor]]:
        return list(zip(self._linears, self.buffers(), strict=True))

    @torch.no_grad()
    def settle(self, share: float) -> None:
        """Settle so many weights of each matrix in all, and put those that had been back to where they were.

        Args:
            share: 0 to 1, of all weights; no less than before.
        """
        for linear, settled in self._all():
            weight, free = linear.weight, settled.isnan()
            count = round(share * weight.numel()) - int((~free).sum())
            if count > 0:
                if not linear.scales:
                    linear.fix_scales()
                largest = torch.where(free, weight.abs().float(), -1.0).flatten().topk(count).indices
                chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
                chosen = chosen.index_fill_(0, largest, True).view(weight.shape)
                rounded = linear.format.decode(*linear.encoded()).to(weight.dtype)
                settled.copy_(torch.where(chosen, rounded, settled))
            weight.copy_(torch.where(settled.isnan(), weight, settled))

    def mask_gradients(self) -> None:
        """Take the gradients of what is settled away, so that clipping does not count them."""
        for linear, settled in self._all():
            if linear.weight.grad is not None:
                linear.weight.grad.masked_fill_(~settled.isnan(), 0.0)
